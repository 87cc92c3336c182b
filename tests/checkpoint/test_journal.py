import errno
import json
import os
import signal

import pytest
import torch

from llmfold.checkpoint import Entry, Journal, ShardWriter, TensorSpec, plan_shards
from llmfold.errors import OutputError, UsageError

from .builders import one_sentence

HEAD = {"fingerprint": "f", "config": {"ratio": 0.2, "widths": [1, 2]}, "version": "0.1"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def reopened(path):
    with Journal.open(path, HEAD) as journal:
        return journal.done


def write_two(path) -> bytes:
    with Journal.open(path, HEAD) as journal:
        journal.append("layer-0", {"a": "00"}, {"seconds": 1.5})
        journal.append("layer-1", {"b": "11"}, {})
    return path.read_bytes()


def test_what_was_appended_is_done(path):
    with Journal.open(path, HEAD) as journal:
        assert journal.done == {}
        journal.append("layer-0", {"a": "00"}, {"seconds": 1.5, "text": "ä\n\u2028"})
        assert journal.done == reopened(path)
    assert reopened(path) == {"layer-0": Entry("layer-0", {"a": "00"}, {"seconds": 1.5, "text": "ä\n\u2028"})}


def test_the_first_line_is_the_head(path):
    lines = write_two(path).splitlines()
    assert json.loads(lines[0]) == HEAD
    assert [json.loads(line)["unit"] for line in lines[1:]] == ["layer-0", "layer-1"]


def test_torn_at_any_byte(path):
    whole = write_two(path)
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        done = reopened(path)
        assert len(done) == max(0, sum(end <= length for end in ends) - 1)
        assert path.read_bytes() == whole[: max([ends[0], *(end for end in ends if end <= length)])]


def test_a_torn_line_is_replaced_by_the_next(path):
    whole = write_two(path)
    path.write_bytes(whole[:-5])
    with Journal.open(path, HEAD) as journal:
        assert list(journal.done) == ["layer-0"]
        journal.append("layer-1", {"b": "11"}, {})
    assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{}", b"[]", b"\0", b"[" * 100_000, b'{"unit":1,"digests":{},"record":{}}', b"\xff"])
def test_a_damaged_line_and_what_follows_is_made_again(path, line):
    lines = write_two(path).splitlines()
    path.write_bytes(b"\n".join([lines[0], lines[1], line, lines[2], b""]))
    assert list(reopened(path)) == ["layer-0"]
    assert path.read_bytes().splitlines() == lines[:2]


@pytest.mark.parametrize("change", [{"fingerprint": "g"}, {"config": {"ratio": 0.3}}, {"version": "0.2"}])
def test_another_run_is_refused_and_left_alone(path, change):
    before = write_two(path)
    with pytest.raises(UsageError, match=r"a partial run .* pass --overwrite to discard it") as caught:
        Journal.open(path, HEAD | change)
    assert one_sentence(caught.value)
    assert str(path.parent) in str(caught.value)
    assert path.read_bytes() == before


def test_tuples_in_the_head_are_lists(path):
    Journal.open(path, {"widths": (1, 2)}).close()
    Journal.open(path, {"widths": [1, 2]}).close()


def test_a_full_disk_is_one_sentence_and_can_be_tried_again(path, monkeypatch):
    pwrite = os.pwrite
    budget = [20]

    def until_full(fd, data, offset):
        if not budget[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: budget[0]]
        budget[0] -= len(part)
        return pwrite(fd, part, offset)

    with Journal.open(path, HEAD) as journal:
        monkeypatch.setattr(os, "pwrite", until_full)
        with pytest.raises(OutputError, match="run the same command again: it resumes"):
            journal.append("layer-0", {"a": "00"}, {})
        assert journal.done == {}
        monkeypatch.setattr(os, "pwrite", pwrite)
        journal.append("layer-0", {"a": "00"}, {})
    assert list(reopened(path)) == ["layer-0"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot be"):
        Journal.open(tmp_path / "missing" / "journal.jsonl", HEAD)
    with pytest.raises(OutputError, match="cannot be read"):
        Journal.open(tmp_path, HEAD)


def write_units(folder, told):
    """Write and journal a unit after another, and tell of each."""
    names = [f"t{number}" for number in range(2000)]
    writer = ShardWriter(plan_shards([TensorSpec(name, torch.float32, (256,)) for name in names], 10**9), folder)
    writer.create()
    journal = Journal.open(folder / "journal.jsonl", {"run": 1})
    for number, name in enumerate(names):
        digest = writer.write(name, torch.full((256,), float(number)))
        writer.sync()
        journal.append(name, {name: digest}, {})
        os.write(told, f"{name}\n".encode())


def test_killed_while_writing(tmp_path):
    """What a SIGKILL leaves: every unit in the journal is in the shard with the digest that was noted."""
    from hashlib import sha256

    from safetensors.torch import load_file

    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write_units(tmp_path, writing)
        finally:
            os._exit(99)
    os.close(writing)
    with open(reading) as told:
        seen = [told.readline().strip() for _ in range(20)]
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with Journal.open(tmp_path / "journal.jsonl", {"run": 1}) as journal:
        assert set(seen) <= journal.done.keys()
        loaded = load_file(tmp_path / "model.safetensors")
        for name, entry in journal.done.items():
            assert sha256(loaded[name].numpy().tobytes()).hexdigest() == entry.digests[name]
        journal.append("again", {}, {})
