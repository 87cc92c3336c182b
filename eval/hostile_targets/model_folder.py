"""Files of a model folder, through all that a fold does before its work; a few through the whole fold."""

import contextlib
import io
import json
import os
import shutil
import socket
import stat
from typing import Any

from hostile_inputs.configs import configs
from hostile_inputs.folders import folders
from hostile_inputs.junk import edited, json_files
from hostile_inputs.weights import indexes, safetensors
from hostile_inputs.yaml_files import cards
from hypothesis import strategies as st

from hostile_targets.kind import Kind
from hostile_targets.world import World
from llmfold import FoldConfig, LlmfoldError
from llmfold.checkpoint import Checkpoint, Source
from llmfold.checkpoint.base_card import carried_over
from llmfold.cli import main
from llmfold.data.tokens import load_tokenizer, token_ids
from llmfold.pipeline.opening import open_source
from llmfold.pipeline.output_config import output_config
from llmfold.planning import make_plan
from llmfold.runtime.storage import replace_text


def opened(world: World, _: object = None) -> None:
    """All that a fold does with a folder's small files and headers."""
    source = Source(world.case, "tiny", None)
    checkpoint, shape = open_source(source)
    for name in checkpoint.tensors:
        checkpoint.read(name)
    checkpoint.copy_side_files(world.out)
    carried_over(world.case)
    plan = make_plan(shape, checkpoint.tensors, FoldConfig(model="m", ratio=0.2, method="paper"))
    config = json.dumps(output_config(checkpoint.config, plan), ensure_ascii=False)
    replace_text(world.out / "config.json", config)


def place_header(world: World, data: bytes) -> None:
    world.like(world.base, "model.safetensors")
    (world.case / "model.safetensors").write_bytes(data)


def header(world: World, _: object) -> None:
    checkpoint = Checkpoint.open(world.case)
    for name in list(checkpoint.tensors)[:10]:
        checkpoint.read(name)
    opened(world)


def place_index(world: World, data: bytes) -> None:
    world.like(world.base, "model.safetensors")
    for name in SHARDS:
        os.link(world.base / "model.safetensors", world.case / name)
    (world.case / "model.safetensors.index.json").write_bytes(data)


SHARDS = ["a.safetensors", "model-00001-of-00002.safetensors"]


def place_config(world: World, data: bytes) -> None:
    world.like(world.base, "config.json")
    (world.case / "config.json").write_bytes(data)


SIDES = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "processor_config.json")
SIDE_KEYS = (
    *("tokenizer_class", "auto_map", "name_or_path", "tokenizer_file", "bos_token", "added_tokens_decoder"),
    *("chat_template", "eos_token_id", "bos_token_id", "model_max_length", "cache_dir", "_name_or_path"),
)


def place_files(world: World, files: dict[str, bytes]) -> None:
    world.like(world.base, *files)
    for name, data in files.items():
        (world.case / name).write_bytes(data)


def _sides(world: World) -> st.SearchStrategy[dict[str, bytes]]:
    base = json.loads((world.base / "tokenizer_config.json").read_text())
    contents: dict[str, Any] = dict.fromkeys(SIDES, json_files(base, SIDE_KEYS))
    adapter = json_files({"base_model_name_or_path": "x/y", "peft_type": "LORA", "r": 8}, ("modules_to_save",))
    contents |= {"README.md": cards(), "adapter_config.json": adapter}
    one = st.sampled_from([*contents, "README.md"])
    return st.lists(one, min_size=1, max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: contents[name] for name in names})
    )


def _place_entries(world: World, entries: list[tuple[bytes, str]]) -> None:
    world.like(world.base)
    _add_entries(world, entries)


def _add_entries(world: World, entries: list[tuple[bytes, str]]) -> None:
    for name, kind in entries:
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError):
            _place(world, name, kind)


LINKS = {
    "to /etc/passwd": b"/etc/passwd",
    "to /dev/zero": b"/dev/zero",
    "to the parent": b"..",
    "to a file inside": b"config.json",
    "to nowhere": b"absent",
}


def _place(world: World, name: bytes, kind: str) -> None:
    path = os.path.join(os.fsencode(world.case), name)
    if os.path.islink(os.path.dirname(path)):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    contents = {"empty": b"", "pickle": world.pickle, "zip": world.zip, "text": b"{}"}
    if kind in contents:
        with open(path, "wb") as file:
            file.write(contents[kind])
    elif kind in LINKS:
        os.symlink(LINKS[kind], path)
    elif kind == "to the secret":
        os.symlink(os.fsencode(world.outside / "secret.txt"), path)
    elif kind in ("to itself", "a loop of two"):
        other = path if kind == "to itself" else path + b".loop"
        os.symlink(other, path)
        if other != path:
            os.symlink(path, other)
    elif kind == "hard link":
        os.link(world.base / "config.json", path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        with contextlib.suppress(PermissionError):
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    elif kind == "socket":
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as made:
            made.bind(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)


def _tokenizer(world: World, _: object) -> None:
    load_tokenizer(world.case)
    token_ids(world.case, "it was a dark and stormy night", 64)


def _tokenizers(world: World) -> st.SearchStrategy[dict[str, bytes]]:
    fast, about = (json.loads((world.base / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    return st.fixed_dictionaries(
        {"tokenizer.json": edited(fast, ("normalizer", "decoder", "truncation", "padding", "added_tokens"))},
        optional={"tokenizer_config.json": json_files(about, SIDE_KEYS)},
    )


def _place_fold(world: World, made: tuple[bytes, list[tuple[bytes, str]]]) -> None:
    config, entries = made
    place_config(world, config)
    _add_entries(world, entries)


def _fold(world: World, _: object) -> None:
    """The whole command, on what may well be accepted."""
    words = ["--model", str(world.case), "--ratio", "0.2", "--method", "paper", "--output", str(world.out / "x")]
    errors, quiet = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(quiet):
        code = main([*words, "--fidelity-tokens", "0"])
    said = errors.getvalue().splitlines()
    if code not in (0, 1, 2) or "unexpected" in errors.getvalue():
        raise AssertionError(f"exit code {code}: {said[-1:]}")
    if code:
        raise LlmfoldError(said[-1] if said else "")


_HARMLESS = st.sampled_from(
    [b"[/x].txt", b"a\nb.txt", b"\xff.txt", b"license\xff", b"\x1b[31mred.txt", b"..x", b"notice\n", b"license [bold]"]
)


def _folds(world: World) -> st.SearchStrategy[tuple[bytes, list[tuple[bytes, str]]]]:
    odd = st.sampled_from(["\ud800", "[/x]", "\x1b[31m", "{{ x }}", "<script>", 10**30, [[[[]]]], -1, {"a": "\udfff"}])
    config = st.dictionaries(
        st.sampled_from(["note", "_x", "bos_token_id", "eos_token_id", "pad_token_id", "task"]), odd, max_size=2
    )
    entries = st.lists(st.tuples(_HARMLESS, st.sampled_from(["text", "empty", "pickle", "zip"])), max_size=2)
    return st.tuples(config.map(lambda extra: json.dumps({**world.config, **extra}).encode()), entries)


KINDS = {
    "safetensors header": Kind(
        0.24, lambda w: safetensors((w.base / "model.safetensors").read_bytes(), w.names), place_header, header
    ),
    "index": Kind(0.12, lambda w: indexes(w.names, SHARDS), place_index, opened),
    "config.json": Kind(0.22, lambda w: configs(w.config), place_config, opened),
    "links, pipes, disguises": Kind(0.1, lambda _: folders(), _place_entries, opened),
    "side files and card": Kind(0.1, _sides, place_files, opened),
    "tokenizer": Kind(0.02, _tokenizers, place_files, _tokenizer),
    "whole fold": Kind(0.0005, _folds, _place_fold, _fold),
}
