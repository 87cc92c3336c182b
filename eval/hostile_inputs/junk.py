"""Values that do not belong where they stand, and bytes that are JSON but for them."""

import copy
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """Bytes that stand in JSON as they are."""

    data: bytes

    def __repr__(self) -> str:
        """Short, however long the bytes are."""
        return f"Raw({self.data[:40]!r}…, {len(self.data)} bytes)"


@dataclass(frozen=True)
class Twice:
    """An object whose first key stands twice."""

    value: dict[str, Any]


def encode(value: Any) -> bytes:
    """JSON, with what Python's own writer would refuse."""
    match value:
        case Raw():
            return value.data
        case Twice():
            pairs = [*list(value.value.items())[:1], *value.value.items()]
            return b"{" + b",".join(encode(k) + b":" + encode(v) for k, v in pairs) + b"}"
        case dict():
            return b"{" + b",".join(encode(str(k)) + b":" + encode(v) for k, v in value.items()) + b"}"
        case list() | tuple():
            return b"[" + b",".join(map(encode, value)) + b"]"
    return json.dumps(value).encode()


DEPTHS = (50, 120, 240, 330, 480, 700, 900, 100_000)
RAW = st.sampled_from(
    [
        *(Raw(b"[" * depth + b"]" * depth) for depth in DEPTHS),
        *(Raw(b'{"a":' * depth + b"1" + b"}" * depth) for depth in DEPTHS),
        *(Raw(b"1" * digits) for digits in (400, 4300, 4301, 100_000)),
        *(Raw(b"[" * 100_000), Raw(b"-0"), Raw(b"1e999"), Raw(b"-1e999"), Raw(b"1e-999"), Raw(b"0x10"), Raw(b"")),
        *(Raw(b"NaN"), Raw(b"Infinity"), Raw(b"-Infinity"), Raw(b"\xff"), Raw(b'"\xff\xfe"'), Raw(b'"\\ud800"')),
        *(Raw(b"[" + b"[]," * 20_000 + b"0]"), Raw(b'"' + b"a" * 100_000 + b'"'), Raw(b"[,]"), Raw(b"\0")),
    ]
)
WORDS = st.sampled_from(
    [
        *("", ".", "..", "../secret.txt", "/etc/passwd", "../../outside/secret.txt", "C:\\x", "a/b", "a\0b", "~", "%s"),
        *("NaN", "\ud800", "\x1b[31mred", "a\nb", "[/x]", "{0}", "{{ 7 * 7 }}", "<script>", "llama", "float32", "full"),
        *("__class__", "to_dict", "self", "LlamaTokenizer", "os", "Trainer", "silu", "1" * 5000, "\u202e", "x" * 3000),
    ]
) | st.text(max_size=6)
INTEGERS = st.sampled_from([0, -1, 1, 2, 3, 7, 2**31, 2**32, 10**9, 2**63, 2**64, -(2**63), 10**30, 10**3000])
SCALARS = st.none() | st.booleans() | INTEGERS | st.integers(-4, 200) | st.floats() | WORDS
JUNK = st.recursive(
    SCALARS | RAW,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def edited(draw: st.DrawFn, base: dict[str, Any], more: tuple[str, ...] = (), values: Any = JUNK) -> bytes:
    """JSON like ``base`` in which up to three places hold something else, and now and then its bytes are damaged."""
    tree = copy.deepcopy(base)
    for _ in range(draw(st.integers(0, 3))):
        _edit(draw, tree, more, values)
    data = encode(tree)
    return draw(damaged(data)) if draw(st.integers(0, 9)) == 0 else data


def _edit(draw: st.DrawFn, tree: Any, more: tuple[str, ...], values: Any) -> None:
    """Change one place of a tree of dicts and lists."""
    place = tree
    for _ in range(draw(st.integers(0, 3))):
        inner = [
            each for each in (place.values() if isinstance(place, dict) else place) if isinstance(each, dict | list)
        ]
        if not inner:
            break
        place = draw(st.sampled_from(inner))
    if isinstance(place, list):
        if place and draw(st.booleans()):
            place[draw(st.integers(0, len(place) - 1))] = draw(values)
        else:
            place.append(draw(values))
        return
    key = draw(st.sampled_from([*place, *more]) if place or more else WORDS)
    action = draw(st.sampled_from(["set", "set", "set", "delete", "odd", "twice"]))
    if action == "delete":
        place.pop(key, None)
    elif action == "odd":
        place[draw(WORDS)] = draw(values)
    elif action == "twice" and isinstance(place.get(key), dict) and place[key]:
        place[key] = Twice(place[key])
    else:
        place[key] = draw(values)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with one place overwritten, cut or doubled."""
    at = draw(st.integers(0, len(data)))
    patch = draw(RAW.map(lambda raw: raw.data) | st.binary(max_size=6) | st.just(b"\xef\xbb\xbf"))
    return data[:at] + patch + data[at + draw(st.integers(0, 12)) :]


def json_files(base: dict[str, Any], more: tuple[str, ...] = (), values: Any = JUNK) -> st.SearchStrategy[bytes]:
    """Contents of a JSON file that should look like ``base``."""
    wild = JUNK.map(encode) | st.binary(max_size=60)
    return st.one_of(*[edited(base, more, values)] * 6, wild)
