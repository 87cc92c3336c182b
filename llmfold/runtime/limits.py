"""What this machine offers a process: memory within its cgroup, and disk; and a refusal where that is too little."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmfold.errors import OutputError
from llmfold.runtime.storage import free_bytes
from llmfold.sizes import human_bytes

CACHE_BYTES = 2**33
"""Bound on the key/value cache of documents sampled at once, counted in float32: 64 of 128 tokens of LLaMA-7B."""
IN_MEMORY_SHARE = 0.8
"""Share of a device's free memory that a model may fill."""
_PROC = Path("/proc")


def room(device: int | str, free: int, limits: Mapping[int | str, int] | None = None) -> int:
    """Bytes that a model, with what it needs to run, may take on a device, by accelerate's name for it.

    Args:
        device: "cpu", or the number of a GPU.
        free: bytes free there.
        limits: bounds by device, or under "all" for those not named.
    """
    limits = limits or {}
    return min(int(IN_MEMORY_SHARE * free), limits.get(device, limits.get("all", free)))


def available_memory(proc: Path = _PROC) -> int:
    """Bytes that this process can still have: free or reclaimable on the machine, and within the limit of its cgroups.

    Files in the page cache count as free, since the kernel drops them when memory is wanted.
    """
    return max(0, min([_free_on_machine(proc), *memory_groups(proc)]))


def _free_on_machine(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return values.get("MemAvailable", values.get("MemFree", 0))


_Names = tuple[str, str, str]
"""What a cgroup version calls its files of the limit and of the usage, and the reclaimable part in memory.stat."""
_V2: _Names = ("memory.max", "memory.current", "inactive_file")
_V1: _Names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory_groups(proc: Path = _PROC) -> Iterator[int]:
    """Bytes left in the control groups that limit the memory of this process, its own first and then its parents.

    Reclaimable files do not count as used; cgroup versions 1 and 2.
    """
    for names, root, path in _hierarchies(proc):
        folder = root / path.lstrip("/")
        if not folder.is_dir():  # inside a container the path may be that of the host
            folder = root
        for group in (folder, *folder.parents):
            left = _left_in(group, names)
            if left is not None:
                yield left
            if group == root:
                break


def _hierarchies(proc: Path) -> Iterator[tuple[_Names, Path, str]]:
    """Names of files, mount point and path of this process in every hierarchy that may limit memory."""
    try:
        paths = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    path_by_controllers = {names: path for _, names, path in (line.split(":", 2) for line in paths)}
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        point, (kind, _, *options) = Path(left.split()[4]), right.split()
        if kind == "cgroup2" and "" in path_by_controllers:
            yield _V2, point, path_by_controllers[""]
        elif kind == "cgroup" and "memory" in options[0].split(","):
            named = path_by_controllers.items()
            yield from ((_V1, point, path) for names, path in named if "memory" in names.split(","))


def _left_in(group: Path, names: _Names) -> int | None:
    """Bytes left in a group, None where it has no limit."""
    limit_file, usage_file, reclaimable = names
    try:
        limit = (group / limit_file).read_text(encoding="ascii").strip()
        used = int((group / usage_file).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():  # "max"
        return None
    counters = dict(line.split() for line in stat)
    return int(limit) - used + int(counters.get(reclaimable, 0))


def check_memory(needed: int, available: int) -> None:
    """Raise OutputError where a fold needs more memory than there is."""
    if needed > available:
        raise OutputError(
            f"this fold needs about {human_bytes(needed)} of memory and this machine, or the cgroup, has "
            f"{human_bytes(available)} left: end other programs, raise the limit, or take a larger machine"
        )


def check_disk(folders: Sequence[Path], needed: int) -> None:
    """Raise OutputError where the disk that holds ``folders`` has less free than what goes there still needs.

    Args:
        folders: work folders, existing or not; what a resumed run has already put there counts.
        needed: bytes of all of them when they are complete.
    """
    held = sum(f.stat().st_blocks * 512 for folder in folders if folder.is_dir() for f in folder.rglob("*"))
    free = free_bytes(folders[0])
    if needed - held > free:
        raise OutputError(
            f"the disk that holds {folders[0].parent} is too full: this fold needs {human_bytes(needed - held)} and "
            f"{human_bytes(free)} are free; make room, or choose an --output on another disk"
        )
