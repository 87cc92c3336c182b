"""Texts, packed or not, and tables of texts."""

import gzip
import lzma

from hypothesis import strategies as st

from hostile_inputs.junk import JUNK, damaged, encode


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and contents of a text."""
    suffix = draw(st.sampled_from([".txt", ".txt.gz", ".txt.xz", "", ".GZ", ".xz"]))
    content = draw(
        st.sampled_from([b"prose\n", b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}", b"[{}]", b"[" * 100_000, b"\0" * 9])
        | st.binary(max_size=60)
        | JUNK.map(encode)
    )
    packers = {
        "z": lambda: gzip.compress(content, 1),
        "x": lambda: lzma.compress(content, preset=0),
        "": lambda: content,
    }
    data = packers[draw(st.sampled_from(["z", "x", "", suffix[-1:].lower() if suffix[-1:] in ("z", "Z") else ""]))]()
    return suffix, draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and contents of a table of texts."""
    suffix = draw(st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".ndjson", ".jsonl.gz", ".json.xz"]))
    rows = draw(st.lists(st.dictionaries(st.sampled_from(["text", "x", ""]), JUNK, max_size=2), max_size=3))
    data = b"\n".join(encode(row) for row in rows)
    data = (
        gzip.compress(data, 1)
        if suffix.endswith("gz")
        else lzma.compress(data, preset=0)
        if suffix.endswith("xz")
        else data
    )
    return suffix, draw(damaged(data)) if draw(st.booleans()) else data
