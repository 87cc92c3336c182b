"""What a machine offers, from made-up /proc and cgroup files of both versions, and refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmfold.errors import OutputError
from llmfold.runtime import limits
from llmfold.runtime.limits import available_memory, check_disk, check_memory, memory_groups
from llmfold.sizes import human_bytes

GB = 1_000_000_000
Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A /proc whose own process is in the cgroup ``path``; the mount point is ``tmp_path / "cgroup"``."""

    def make(kind: str, path: str, available: int = 16 * GB) -> Path:
        proc, mount = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        mount.mkdir()
        (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n")
        (proc / "self" / "cgroup").write_text(f"7:cpu:/\n0::{path}\n" if kind == "cgroup2" else f"4:memory:{path}\n")
        options = "rw" if kind == "cgroup2" else "rw,memory"
        (proc / "self" / "mountinfo").write_text(f"30 20 0:26 / {mount} rw shared:4 - {kind} x {options}\n")
        return proc

    return make


def group_v2(folder: Path, limit: str, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")


def group_v1(folder: Path, limit: int, used: int, files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 5\ntotal_inactive_file {files}\n")


def test_without_a_limit_the_machine_decides(machine: Machine, tmp_path: Path) -> None:
    proc = machine("cgroup2", "/a")
    group_v2(tmp_path / "cgroup" / "a", "max", GB)
    assert list(memory_groups(proc)) == []
    assert available_memory(proc) == 16 * GB // 1024 * 1024


def test_the_tightest_group_on_the_way_up_decides(machine: Machine, tmp_path: Path) -> None:
    proc = machine("cgroup2", "/a/b")
    group_v2(tmp_path / "cgroup" / "a", str(6 * GB), 4 * GB, files=GB)
    group_v2(tmp_path / "cgroup" / "a" / "b", str(5 * GB), GB)
    assert available_memory(proc) == 3 * GB


def test_version_1_groups_and_paths_of_the_host(machine: Machine, tmp_path: Path) -> None:
    proc = machine("cgroup", "/docker/of/the/host")
    group_v1(tmp_path / "cgroup", 4 * GB, 3 * GB, files=2 * GB)
    assert available_memory(proc) == 3 * GB


def test_a_group_that_is_over_its_limit_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    proc = machine("cgroup", "/a")
    group_v1(tmp_path / "cgroup" / "a", GB, 2 * GB)
    assert available_memory(proc) == 0


def test_no_proc_is_no_error(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > 0
    assert available_memory() > 0


def test_too_little_memory_is_refused_with_both_numbers() -> None:
    check_memory(GB, GB)
    with pytest.raises(OutputError, match=r"needs about 5\.0 GB of memory .* has 3\.0 GB left"):
        check_memory(5 * GB, 3 * GB)


def test_too_little_disk_is_refused_and_what_a_resumed_run_holds_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "free_bytes", lambda _: 1_000_000)
    partial = tmp_path / "partial"
    check_disk([partial], 1_000_000)
    with pytest.raises(OutputError, match=r"too full: this fold needs 1\.1 MB and 1\.0 MB are free"):
        check_disk([partial], 1_100_000)
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"x" * 200_000)
    check_disk([partial], 1_100_000)


def test_sizes_are_for_people() -> None:
    assert [human_bytes(n) for n in (12, 6_900_000, 13_500_000_000)] == ["12 B", "6.9 MB", "13.5 GB"]
