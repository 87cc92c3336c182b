"""Files of weights and their index."""

import struct
from typing import Any

from hypothesis import strategies as st

from hostile_inputs.junk import JUNK, WORDS, Twice, damaged, encode

ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "F32", "F8_E4M3", "I64", "F4", "BOOL", "C64", "", "f32"])
        | JUNK,
        "shape": st.lists(st.integers(-1, 5) | st.integers(2**31, 2**65), max_size=4) | JUNK,
        "data_offsets": st.lists(st.integers(0, 40) | st.integers(2**62, 2**65), max_size=3) | JUNK,
    },
    optional={"strides": JUNK, "dtype ": JUNK},
)
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "F8_E4M3": 1}


@st.composite
def laid_out(draw: st.DrawFn, names: list[str]) -> dict[str, Any]:
    """A header whose tensors lie end to end, but for a gap, an overlap or a lie in one of them."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.sampled_from(names) | WORDS, max_size=5)):
        dtype, shape = draw(st.sampled_from(list(SIZES))), draw(st.lists(st.integers(0, 3), max_size=3))
        size = SIZES[dtype]
        for each in shape:
            size *= each
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size + draw(st.sampled_from([0] * 12 + [1, -1, 4, 2**40]))
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.sampled_from([{"format": "pt"}, {}, {"format": 1}, None, []]))
    return header


@st.composite
def safetensors(draw: st.DrawFn, sound: bytes, names: list[str]) -> bytes:
    """A file called model.safetensors."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(damaged(sound))
    if kind == 1:
        return draw(st.binary(max_size=80))
    if kind == 2:
        header = draw(st.dictionaries(st.sampled_from(names) | WORDS, ENTRIES | JUNK, max_size=3))
    else:
        header = draw(laid_out(names))
    text = encode(Twice(header) if header and draw(st.integers(0, 7)) == 0 else header)
    if draw(st.integers(0, 9)) == 0:
        text = draw(damaged(text))
    text += b" " * draw(st.sampled_from([0, 0, 0, 7, 1000]))
    length = draw(st.sampled_from([len(text)] * 8 + [0, 1, len(text) + 1, len(text) - 1, 2**31, 2**63, 2**64 - 1]))
    ends = [each["data_offsets"][1] for each in header.values() if _has_offsets(each)]
    body = min(max([*ends, 0]), 4096) + draw(st.sampled_from([0] * 8 + [1, -1, 40]))
    return struct.pack("<Q", max(0, length)) + text + b"\0" * max(0, body)


def _has_offsets(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


def indexes(names: list[str], shards: list[str]) -> st.SearchStrategy[bytes]:
    """Contents of model.safetensors.index.json."""
    odd = ("../base/model.safetensors", "/etc/passwd", "x.bin", "absent.safetensors", ".safetensors", "a\0.safetensors")
    longest = st.sampled_from(
        ["a" * 300 + ".safetensors", "\ud800.safetensors", "a/../b.safetensors", "CON.safetensors"]
    )
    places = st.sampled_from([*shards, *odd]) | longest | JUNK
    weight_map = st.dictionaries(st.sampled_from(names) | WORDS, places, max_size=6)
    whole = st.builds(lambda weights: {"metadata": {}, "weight_map": weights}, weight_map | JUNK)
    return whole.map(encode) | whole.map(encode).flatmap(damaged) | JUNK.map(encode)
