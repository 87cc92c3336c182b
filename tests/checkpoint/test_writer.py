import errno
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmfold.checkpoint import Checkpoint, ShardWriter, TensorSpec, plan_shards
from llmfold.checkpoint import writer as writer_module
from llmfold.errors import OutputError
from llmfold.runtime import storage

from .builders import one_sentence, write_config

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "c": torch.tensor(2.0, dtype=torch.float16),
    "d": torch.empty(0, 4),
}


def plan_of(tensors, limit=1 << 30):
    return plan_shards([TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()], limit)


def sha256(tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.fixture
def created(tmp_path):
    with ShardWriter(plan_of(TENSORS), tmp_path) as writer:
        writer.create()
        yield writer


def test_returns_the_digest_of_the_bytes_in_the_file(tmp_path, created):
    digests = {name: created.write(name, tensor) for name, tensor in TENSORS.items()}
    created.sync()
    loaded = load_file(tmp_path / "model.safetensors")
    assert digests == {name: sha256(tensor) for name, tensor in TENSORS.items()}
    assert digests == {name: sha256(tensor) for name, tensor in loaded.items()}


def test_what_is_written_is_read_back_by_any_writer(tmp_path, created):
    for name, tensor in TENSORS.items():
        created.write(name, tensor)
    with ShardWriter(plan_of(TENSORS), tmp_path) as other:
        for name, tensor in TENSORS.items():
            found = other.read(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


def test_a_shard_that_is_gone_cannot_be_read(tmp_path, created):
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OutputError, match=r"model.safetensors cannot be read: No such file"):
        created.read("a")


def test_the_file_is_what_safetensors_would_hold(tmp_path):
    """Same tensors, same metadata: another tool may compare the files."""
    with ShardWriter(plan_of({"a": TENSORS["a"]}), tmp_path) as writer:
        writer.create()
        writer.write("a", TENSORS["a"])
    save_file({"a": TENSORS["a"]}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_views_and_gradients_are_written_as_they_look(tmp_path):
    base = torch.randn(40, 30)
    tensors = {"t": base.t(), "s": base[::2, 1::3], "g": torch.nn.Parameter(base.clone())}
    with ShardWriter(plan_of(tensors), tmp_path) as writer:
        writer.create()
        for name, tensor in tensors.items():
            assert writer.write(name, tensor) == sha256(tensor.detach())
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_larger_than_a_block(tmp_path):
    tensor = torch.randn(3 << 20)
    with ShardWriter(plan_of({"w": tensor}), tmp_path) as writer:
        writer.create()
        assert writer.write("w", tensor) == sha256(tensor)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], tensor)


def test_several_writers_share_one_shard(tmp_path):
    plan = plan_of(TENSORS)
    first, second = ShardWriter(plan, tmp_path), ShardWriter(plan, tmp_path)
    first.create()
    for number, (name, tensor) in enumerate(TENSORS.items()):
        (first, second)[number % 2].write(name, tensor)
    first.close()
    second.close()
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_sharded_output_has_an_index_and_opens(tmp_path):
    write_config(tmp_path)
    with ShardWriter(plan_of(TENSORS, 30), tmp_path) as writer:
        writer.create()
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_parameters"] == 42
    checkpoint = Checkpoint.open(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in TENSORS.items())


def test_creating_again_keeps_what_was_written(tmp_path, created):
    created.write("a", TENSORS["a"])
    ShardWriter(plan_of(TENSORS), tmp_path).create()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], TENSORS["a"])


@pytest.mark.parametrize("sizes", [(5,), (1, 4), (2, 2, 1)])
def test_a_tensor_in_parts_is_that_tensor(tmp_path, created, sizes):
    """Parts of others may lie between; the digest comes with the last."""
    digests = []
    for part in TENSORS["b"].split(sizes):
        created.write("a", TENSORS["a"])
        digests.append(created.append("b", part))
    assert digests == [None] * (len(sizes) - 1) + [sha256(TENSORS["b"])]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["b"], TENSORS["b"])


def test_parts_that_do_not_fit_are_refused(created):
    created.append("b", TENSORS["b"][:3])
    with pytest.raises(OutputError, match=r"'b' is torch.bfloat16 \(6, 7\), but .*\(5, 7\) was planned"):
        created.append("b", TENSORS["b"][:3])
    with pytest.raises(OutputError, match=r"\(2, 4\), but .*\(2, 3\) was planned"):
        created.append("a", torch.ones(1, 4))
    with pytest.raises(OutputError, match="'z' is not in the plan"):
        created.append("z", torch.ones(1))


@pytest.mark.parametrize("damage", ["header", "length", "empty"])
def test_creating_again_replaces_what_is_not_of_this_plan(tmp_path, created, damage):
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    created.write("a", TENSORS["a"])
    path.write_bytes({"header": b"x" * len(whole), "length": whole + b"x", "empty": b""}[damage])
    ShardWriter(plan_of(TENSORS), tmp_path).create()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("z", torch.ones(1), "'z' is not in the plan"),
        ("a", torch.ones(3, 2), r"\(3, 2\), but .*\(2, 3\) was planned"),
        ("a", torch.ones(2, 3).half(), "torch.float16"),
        ("a", torch.full((2, 3), float("nan")), "'a' came out with NaN or infinity"),
        ("b", torch.full((5, 7), float("inf")).bfloat16(), "'b' came out with NaN or infinity"),
    ],
)
def test_refuses_what_was_not_planned(created, name, tensor, sentence):
    with pytest.raises(OutputError, match=sentence) as caught:
        created.write(name, tensor)
    assert one_sentence(caught.value)


def test_writing_before_creating(tmp_path):
    with pytest.raises(OutputError, match=r"model\.safetensors cannot be written"):
        ShardWriter(plan_of(TENSORS), tmp_path).write("a", TENSORS["a"])


def test_writing_into_a_file_of_another_size(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with ShardWriter(plan_of(TENSORS), tmp_path) as writer, pytest.raises(OutputError, match="not the file that was"):
        writer.write("a", TENSORS["a"])


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        ShardWriter(plan_of(TENSORS), tmp_path).create()
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, tmp_path):
        folder = tmp_path / "disk"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip(f"tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
        yield folder
        subprocess.run(["umount", folder], check=True)

    def test_known_before_anything_is_written(self, small_disk):
        writer = ShardWriter(plan_of({"w": torch.zeros(1 << 18)}), small_disk)
        free = storage.free_bytes(small_disk)
        with pytest.raises(OutputError, match=r"free [0-9]+ bytes and run the same command again") as caught:
            writer.create()
        missing = int(str(caught.value).split("free ")[1].split()[0])
        assert missing == writer._plan.nbytes - free
        assert list(small_disk.iterdir()) == []

    def test_creating_again_counts_what_is_there(self, small_disk):
        plan = plan_of({"w": torch.zeros(50_000)})
        ShardWriter(plan, small_disk).create()
        (small_disk / "model.safetensors").write_bytes(b"torn" * 50_000)
        ShardWriter(plan, small_disk).create()
        assert (small_disk / "model.safetensors").stat().st_size == plan.nbytes

    def test_space_is_reserved_by_creating(self, small_disk):
        tensor = torch.ones(50_000)
        with ShardWriter(plan_of({"w": tensor}), small_disk) as writer:
            writer.create()
            with pytest.raises(OSError, match="No space"):
                (small_disk / "filler").write_bytes(bytes(256_000))
            writer.write("w", tensor)
            writer.sync()

    def test_full_while_creating(self, small_disk, monkeypatch):
        monkeypatch.setattr(writer_module, "free_bytes", lambda folder: 1 << 40)
        with pytest.raises(OutputError, match=r"is full: free [0-9]+ bytes"):
            ShardWriter(plan_of({"w": torch.zeros(1 << 18)}), small_disk).create()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "is full: free [0-9]+ bytes and run the same command again: it resumes"),
        (errno.EDQUOT, "is full: free [0-9]+ bytes"),
        (errno.EIO, "model.safetensors cannot be written \\(Input/output error\\)"),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_errors_of_the_disk_are_one_sentence(created, monkeypatch, code, sentence, call):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    created.write("a", TENSORS["a"])
    monkeypatch.setattr(os, call, fail)
    use = created.sync if call == "fsync" else lambda: created.write("b", TENSORS["b"])
    with pytest.raises(OutputError, match=sentence) as caught:
        use()
    assert one_sentence(caught.value)


def test_short_writes_are_continued(created, tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    created.write("a", TENSORS["a"])
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], TENSORS["a"])


def test_file_systems_without_preallocation(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.EOPNOTSUPP, "x")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    plan = plan_of(TENSORS)
    ShardWriter(plan, tmp_path).create()
    assert (tmp_path / "model.safetensors").stat().st_size == plan.nbytes


def test_a_limit_on_the_length_of_files(tmp_path):
    """RLIMIT_FSIZE stands for file systems with small files, such as FAT."""
    told, report = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=create_with_limit, args=(tmp_path, report))
    process.start()
    assert "use a smaller maximum shard size" in told.recv()
    process.join()


def create_with_limit(folder: Path, report: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        ShardWriter(plan_of({"w": torch.zeros(1000)}), folder).create()
    except OutputError as error:
        report.send(str(error))
    else:
        report.send("no error")
