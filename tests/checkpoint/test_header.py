import os
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.header import read_header
from llmfold.errors import CheckpointError

from .builders import one_sentence, raw_safetensors, write_config

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SOUND = save({"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)}, metadata={"format": "pt"})


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert one_sentence(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("length", range(0, len(SOUND), 7))
def test_truncated_anywhere(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(SOUND[:length])
    assert "truncated" in refusal(path)


def test_trailing_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(SOUND + b"\0")
    refusal(path)


def test_header_of_absurd_size(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001))
    with path.open("r+b") as file:
        file.truncate(200_000_000)
    assert "100000001 bytes" in refusal(path)


def test_a_name_given_twice(tmp_path):
    path = tmp_path / "x.safetensors"
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    raw_safetensors(path, f'{{"a":{entry},"a":{entry}}}', 8)
    assert "names 'a' twice" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": ENTRY | {"shape": [3]}},
        {"a": ENTRY | {"shape": [-2]}},
        {"a": ENTRY | {"shape": [2**63, 4]}},
        {"a": ENTRY | {"data_offsets": [8, 0]}},
        {"a": ENTRY | {"data_offsets": [0, 2**70]}},
        {"a": ENTRY | {"dtype": "F31"}},
        {"a": ENTRY, "b": ENTRY},
        {"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}},
        {"a": {}},
        {"a": 3},
        [],
    ],
)
def test_headers_that_lie(tmp_path, header):
    path = tmp_path / "x.safetensors"
    raw_safetensors(path, header, 8)
    refusal(path)


def test_a_pipe_is_not_opened(tmp_path):
    folder = write_config(tmp_path)
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint.open(folder)


def open_and_read_all(data: bytes, index: bytes | None = None) -> None:
    """Whatever is in the files, only a CheckpointError may come out."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_config(Path(name))
        (folder / "model.safetensors").write_bytes(data)
        if index is not None:
            (folder / "model.safetensors.index.json").write_bytes(index)
        try:
            checkpoint = Checkpoint.open(folder)
            for tensor in checkpoint.tensors:
                checkpoint.read(tensor)
        except CheckpointError as error:
            refused = error
        else:
            return
        assert one_sentence(refused)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_garbage(data):
    open_and_read_all(data)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_behind_a_plausible_length(data):
    open_and_read_all(struct.pack("<Q", len(data)) + data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=4), st.integers(0, 4))
def test_damaged_anywhere(at, patch, cut):
    open_and_read_all(SOUND[:at] + patch + SOUND[at + cut :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ODD_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "F4", "", "f32"]) | JSON,
        "shape": st.lists(st.integers(-1, 5) | st.integers(2**31, 2**65), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 16) | st.integers(2**62, 2**65), max_size=3) | JSON,
    }
)


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.text(max_size=4), ODD_ENTRY | JSON, max_size=3), st.integers(0, 24))
def test_wild_headers(header, nbytes):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.safetensors"
        raw_safetensors(path, header, nbytes)
        open_and_read_all(path.read_bytes())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | JSON.map(lambda value: repr(value).encode()))
def test_wild_indexes(index):
    open_and_read_all(SOUND, index)
