"""What is small for what it stands for, at bounds and beyond."""

import gzip
import lzma
import struct
from collections.abc import Callable

from hypothesis import strategies as st

from hostile_targets.kind import Kind, Step
from hostile_targets.model_folder import header, opened, place_config, place_files, place_header, place_index
from hostile_targets.results import placed, recipe
from hostile_targets.texts import place_text, text
from hostile_targets.world import World

BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lists": ("config.json", lambda: b'{"a":[' + b"[]," * 10_000_000 + b"0]}"),
    "few lists": ("config.json", lambda: b'{"a":[' + b"[]," * 490_000 + b"0]}"),
    "strings": ("config.json", lambda: b'{"a":[' + b'"ab",' * 990_000 + b"0]}"),
    "a long string": ("config.json", lambda: b'{"a":"' + b"a" * 31_000_000 + b'"}'),
    "a long file": ("config.json", lambda: b" " * 40_000_000 + b"{}"),
    "many keys, one twice": (
        "index",
        lambda: b'{"weight_map":{' + b",".join(b'"%d":1' % i for i in range(990_000)) + b',"7":1}}',
    ),
    "a header of lists": ("header", lambda: _with_length(b'{"a":[' + b"[]," * 490_000 + b"0]}")),
    "a header of names": ("header", lambda: _many_names()),
    "a deep recipe": ("recipe", lambda: b"ratio: " + b"[" * 40_000),
    "a long recipe": ("recipe", lambda: b"layers:\n" + b"".join(b"  %d: {mlp: .1}\n" % i for i in range(2_000_000))),
    "a recipe of keys": ("recipe", lambda: b"".join(b"k%d: 1\n" % i for i in range(6_000)) + b"k7: 1\n"),
    "letters": (".txt.gz", lambda: gzip.compress(b"a b " * 80_000_000, 1)),
    "letters more tightly": (".txt.xz", lambda: lzma.compress(b"a b " * 80_000_000, preset=0)),
    "one line": (".txt.gz", lambda: gzip.compress(b"[" + b"[]," * 80_000_000, 1)),
    "one row": (".jsonl.gz", lambda: gzip.compress(b'{"text": "' + b"a b " * 80_000_000 + b'"}', 1)),
    "a card of breaks": ("README.md", lambda: b"---\n" + b"\n" * 1_000_000),
}
"""What is small for what it stands for: where it is sent, and how it is made."""


def _many_names() -> bytes:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(entry % number for number in range(50_000)) + b"}"
    return _with_length(text)


def _with_length(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


_BOMB_STEPS: dict[str, tuple[Step, Step]] = {
    "config.json": (place_config, opened),
    "index": (place_index, opened),
    "header": (place_header, header),
    "recipe": (placed("recipe.yaml"), recipe),
    "README.md": (lambda world, data: place_files(world, {"README.md": data}), opened),
}


def _place_bomb(world: World, name: str) -> None:
    kind, make = BOMBS[name]
    packed = world.root / "home" / f"{name}.bomb"  # made once
    if not packed.exists():
        packed.parent.mkdir(exist_ok=True)
        packed.write_bytes(make())
    data = packed.read_bytes()
    if kind in _BOMB_STEPS:
        _BOMB_STEPS[kind][0](world, data)
    else:
        place_text(world, (kind, data))


def _bomb(world: World, name: str) -> None:
    kind, _ = BOMBS[name]
    if kind in _BOMB_STEPS:
        _BOMB_STEPS[kind][1](world, None)
    else:
        text(world, (kind, b""))


KINDS = {
    "bombs": Kind(0.00016, lambda _: st.sampled_from(list(BOMBS)), _place_bomb, _bomb),
}
