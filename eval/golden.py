"""Run the command line at a base commit and in the working tree, and list what differs that nobody allowed.

    LLMFOLD_DATA=DIR python eval/golden.py --base COMMIT
    LLMFOLD_DATA=DIR python eval/golden.py --base COMMIT --only 'method/*/paper' --keep

For changes that must change nothing. Cases, what two runs of one commit differ in, and the differences that are allowed
stand in ``eval/golden.yaml``. Both trees run on this machine with the same interpreter, and nothing of them is imported
here. $LLMFOLD_DATA has models in ``models``, texts in ``text`` and zero-shot tasks in ``zeroshot``.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from golden_cases import PREPARATIONS, Case, read_cases, spelled
from golden_compare import SHOWN, Comparison, Difference, Rules

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".yaml")
LOOPBACK = ROOT / "tests" / "hub" / "loopback.py"
LINKS = {"models": "models", "texts": "text", "zeroshot": "zeroshot"}
"""What every case finds in its folder, by the name in $LLMFOLD_DATA."""
PATIENCE = 1800
DATE = 1_700_000_000
FIXED = {
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONSAFEPATH": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "COLUMNS": "400",
}
DROPPED = ("HF_", "LLMFOLD_", "TRANSFORMERS_", "PYTHON", "CUDA_", "FORCE_COLOR")
"""How variables of the environment begin that runs must not see."""
KILLED = """
import os, pathlib, runpy, signal, sys

layers, sys.argv[1:] = int(sys.argv[1]), sys.argv[2:]
flush = os.fsync

def struck(descriptor):
    flush(descriptor)
    journals = pathlib.Path().rglob("journal*.jsonl")
    if sum(path.read_text().count('"layer-') for path in journals) >= layers:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = struck
runpy.run_module("llmfold", run_name="__main__", alter_sys=True)
"""
"""A run that dies as soon as so many layers are on the disk."""
stopped = threading.Event()


@dataclass
class Side:
    """One of the two trees, and where it puts what it makes."""

    tree: Path
    folder: Path
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        self.temporary = self.folder.with_name(f"{self.folder.name}-temporary")
        self.temporary.mkdir(parents=True)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Variables of its processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        path = os.pathsep.join((str(self.tree), str(self.tree / "kernels")))
        own = {"PYTHONPATH": path, "TMPDIR": str(self.temporary), "HF_HOME": str(self.temporary / "hub")}
        return {**kept, **FIXED, **own, **more}

    def places(self, case: Case, data: Path) -> dict[str, str]:
        """Paths that its output may name, and what is read in their place."""
        named = {self.folder / case.name: "CASE", self.temporary: "TMP", self.tree: "TREE", data: "DATA"}
        return {str(path): word for path, word in named.items()}

    def check(self) -> None:
        """Raise SystemExit unless this tree's package is the one that its processes import."""
        code = "import llmfold; print(llmfold.__file__)"
        env = self.environment({})
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        if not done.stdout.startswith(str(self.tree)):
            sys.exit(f"llmfold is imported from elsewhere than {self.tree}: {done.stdout}{done.stderr}")


class Recording:
    """One case in one tree: does its steps, and leaves a record of them."""

    def __init__(self, case: Case, side: Side, data: Path) -> None:
        self.case, self.side = case, side
        self.record = side.folder / case.name
        self.work, self.steps = self.record / "work", self.record / "steps"
        self.work.mkdir(parents=True)
        self.steps.mkdir()
        for name, source in LINKS.items():
            (self.work / name).symlink_to(data / source)
        self.hub: Any = None
        self.runs = 0
        self.faults: list[str] = []

    def do(self) -> list[str]:
        """Do all steps; returns why the case does not show what it is there for, if so."""
        runs = [index for index, step in enumerate(self.case.steps) if "run" in spelled(step)]
        try:
            for index, step in enumerate(self.case.steps):
                if stopped.is_set():
                    break
                words = dict(spelled(step))
                if "run" in words:
                    words.setdefault("exit", -9 if "killed_after" in words else self.case.exit * (index == runs[-1]))
                    self.run(**words)
                elif "hub" in words:
                    self.open_hub(**words["hub"])
                else:
                    PREPARATIONS[words.pop("make")](self.work, **words)
                date(self.work)
        finally:
            if self.hub is not None:
                self.close_hub()
        return self.faults

    def run(
        self, run: str, exit: int, processes: int = 1, killed_after: int = 0, variables: Mapping[str, str] | None = None
    ) -> None:
        """Run a command line of llmfold, by several processes or until a number of layers is finished."""
        command = [sys.executable, "-m", "llmfold"]
        if processes > 1:
            launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
            command = [sys.executable, *launcher, "-m", "llmfold"]
        elif killed_after:
            command = [sys.executable, "-c", KILLED, str(killed_after)]
        hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": self.token} if self.hub else {}
        env = self.side.environment({**hub, **(variables or {})})
        done = subprocess.run(
            [*command, *shlex.split(run)], cwd=self.work, env=env, capture_output=True, timeout=PATIENCE, check=False
        )
        self.runs += 1
        folder = self.steps / str(self.runs)
        folder.mkdir()
        for name, content in (("stdout", done.stdout), ("stderr", done.stderr)):
            (folder / name).write_bytes(content)
        (folder / "exit-code").write_text(f"{done.returncode}\n")
        if done.returncode != exit:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            self.faults.append(f"run {self.runs} exits with {done.returncode} and not {exit}: {''.join(last)}")

    def open_hub(self, role: str = "write", faults: Sequence[Sequence[Any]] = (), token: bool = True) -> None:
        """Open a hub on the loopback, or give the one that is open other faults and another role."""
        module = loopback()
        if self.hub is None:
            self.hub = module.Hub()
        self.hub.role, self.hub.faults = role, [module.Fault(*fault) for fault in faults]
        self.token = module.TOKEN if token else "wrong"

    def close_hub(self) -> None:
        """Stop the hub, and leave what was pushed to it in the record."""
        self.hub.close()
        folder = self.record / "hub"
        folder.mkdir()
        private = {name: repo.private for name, repo in self.hub.repos.items()}
        state = {"private": private, "commits": self.hub.commits, "leaks": self.hub.leaks}
        (folder / "state.json").write_text(json.dumps(state))
        for name, repo in self.hub.repos.items():
            for branch, files in repo.branches.items():
                for file, content in files.items():
                    path = folder / name / branch / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)


@cache
def loopback() -> ModuleType:
    """The loopback hub of the working tree's tests, which serves both trees."""
    spec = importlib.util.spec_from_file_location("golden_loopback", LOOPBACK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def date(folder: Path) -> None:
    """Give weights below a folder one date: a model is known by the names, sizes and dates of its files."""
    for path in folder.rglob("*.safetensors"):
        os.utime(path, (DATE, DATE))


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of a commit, removed at the end."""
    git = ("git", "-C", str(ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def copied(folder: Path) -> Path:
    """A copy of the working tree as it is now, so that it may be edited while cases run."""
    listing = ("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@contextmanager
def several_at_once(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for cases; when one fails or the script is stopped, no other case begins, and no step of another."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    except BaseException:
        stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def judge(case: Case, sides: tuple[Side, Side], data: Path, rules: Rules) -> tuple[list[Difference], list[str]]:
    """Differences of a case, and what is wrong with the case itself at the base."""
    faults = [Recording(case, side, data).do() for side in sides]
    places = sides[0].places(case, data), sides[1].places(case, data)
    records = [side.folder / case.name for side in sides]
    return Comparison(rules, places).compare(case.name, *records), faults[0]


def run(arguments: argparse.Namespace, data: Path, folder: Path) -> int:
    """Run all cases, print what differs, and return the exit code."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    cases, rules, begin = read_cases(content, arguments.only), Rules.read(content), time.monotonic()
    if not cases:
        sys.exit(f"no case is like {arguments.only}")
    differences: list[Difference] = []
    broken: list[str] = []
    with checked_out(arguments.base, folder / "commit") as commit:
        sides = Side(commit, folder / "base"), Side(copied(folder / "edited"), folder / "tree")
        for side in sides:
            date(side.tree)
            side.check()
        with several_at_once(arguments.jobs) as pool:
            waiting = {pool.submit(judge, case, sides, data, rules): case for case in cases}
            for number, done in enumerate(as_completed(waiting), 1):
                case = waiting[done]
                found, faults = done.result()
                differences += found
                broken += [f"{case.name}: {fault}" for fault in faults]
                words = f"{len(found)} differences" if found else "the same"
                print(f"{number}/{len(cases)} {case.name}: {'; '.join([words, *faults])}", flush=True)
    refused, taken = rules.sort(sorted(differences, key=lambda each: each.case))
    for entry, some in taken.items():
        if some or arguments.only == "*":
            print(f"\nallowed {len(some)} times: {entry.case}: {entry.place}: {entry.why}")
    print("\n".join(["", *listing(refused), *(f"at the base, {fault}" for fault in broken)]))
    print(f"{len(cases)} cases in {time.monotonic() - begin:.0f} s, {len(refused)} differences that are not allowed")
    return int(bool(refused or broken))


def listing(differences: Sequence[Difference]) -> list[str]:
    """Lines that tell of differences, the first few of every file."""
    lines = []
    for _, group in groupby(differences, key=lambda each: (each.case, each.place.partition("#")[0])):
        some = list(group)
        lines += [f"  {each}" for each in some[:SHOWN]]
        lines += [f"  {some[0].case}: … and {len(some) - SHOWN} more in this file"] if len(some) > SHOWN else []
    return lines


def main() -> int:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, metavar="COMMIT", help="what the working tree is compared with")
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases whose names are like this")
    parser.add_argument("--keep", action="store_true", help="leave the records of both, and print where they are")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="cases at once (default: %(default)s)")
    arguments = parser.parse_args()
    data = os.environ.get("LLMFOLD_DATA")
    if not data:
        parser.error("LLMFOLD_DATA is not set: it names the folder of models and texts")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is temporary goes then, too
    folder = Path(tempfile.mkdtemp(prefix="llmfold-golden-")).resolve()
    try:
        return run(arguments, Path(data).resolve(), folder)
    finally:
        if arguments.keep:
            print(f"records: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
