"""Send hostile files through all that reads them, and count what became of them.

    python eval/hostile.py run --count 100000
    python eval/hostile.py page

Inputs come in blocks of one kind, each from a seed of its own, and each block runs in a process of its own: a crash or
a hang ends the block and is a fault. Finished blocks stand in ``FOLDER/blocks.jsonl`` and are not run again.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.dont_write_bytecode = True
FOLDER = Path("/dev/shm/llmfold-hostile") if Path("/dev/shm").is_dir() else Path("hostile")
os.environ["HF_HOME"] = str(FOLDER / "world" / "home")

from hostile_targets import SECONDS, TARGETS, Verdict, Watch, World, judge  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis.errors import FlakyStrategyDefinition  # noqa: E402

PAGE = Path(__file__).parent / "results" / "hostile.md"
BLOCK = 250
SPARE = 3 << 30
"""Address space that a block may add to that of the libraries."""


def send(world: World, watch: Watch, name: str, number: int, count: int, current: Path) -> dict[str, Any]:
    """Draw and judge the inputs of a block."""
    _, strategy, through = TARGETS[name]
    verdicts: list[Verdict] = []
    faults: list[dict[str, Any]] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(world))
    def each(value: Any) -> None:
        current.write_text(repr(value)[:5000], errors="replace")
        verdict = judge(world, watch, through, value)
        verdicts.append(verdict)
        if verdict.fault:
            faults.append({"fault": verdict.fault, "input": repr(value)[:2000]})

    with contextlib.suppress(
        FlakyStrategyDefinition
    ):  # a choice that hypothesis cannot replay ends its search, not ours
        each()
    return {
        "inputs": len(verdicts),
        "refused": sum(verdict.sentence is not None for verdict in verdicts),
        "seconds": sum(verdict.seconds for verdict in verdicts),
        "longest": max((verdict.seconds for verdict in verdicts), default=0),
        "memory": max((verdict.memory for verdict in verdicts), default=0),
        "faults": faults,
    }


def forked(world: World, watch: Watch, name: str, number: int, count: int) -> dict[str, Any]:
    """:func:`send` in a process of its own."""
    found, current = world.root / "home" / "found.json", world.root / "home" / "current"
    found.parent.mkdir(exist_ok=True)
    found.unlink(missing_ok=True)
    current.touch()
    pid = os.fork()
    if pid == 0:
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
            found.write_text(json.dumps(send(world, watch, name, number, count, current)))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(9)
    deadline = time.monotonic() + 60 + count * SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline or _stuck(current):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"inputs": 1, "faults": [{"fault": "hangs", "input": current.read_text()}]}
        time.sleep(0.02)
    if not found.exists():
        return {"inputs": 1, "faults": [{"fault": "the process ended", "input": current.read_text()}]}
    content: dict[str, Any] = json.loads(found.read_text())
    return content


def _stuck(current: Path) -> bool:
    """Whether the input at work began long ago: its alarm could not stop it."""
    return current.exists() and time.time() - current.stat().st_mtime > 6 * SECONDS


def run(count: int, only: str | None, until: str | None) -> None:
    """Send what was not sent yet."""
    FOLDER.mkdir(exist_ok=True)
    log = FOLDER / "blocks.jsonl"
    total = sum(share for share, _, _ in TARGETS.values())
    left = {name: max(1, round(count * share / total)) for name, (share, _, _) in TARGETS.items()}
    done = {name: {line["seed"] for line in _lines(log) if line["target"] == name} for name in TARGETS}
    for line in _lines(log):
        left[line["target"]] -= line["inputs"]
    world = World(FOLDER / "world")
    watch = Watch(world)
    os.chdir(FOLDER)
    while any(left[name] > 0 for name in left if only in (None, name)):
        for name in (name for name in TARGETS if left[name] > 0 and only in (None, name)):
            if until and time.strftime("%H:%M") >= until:
                return
            number = min(set(range(len(done[name]) + 1)) - done[name])
            found = forked(world, watch, name, number, min(BLOCK, left[name]))
            with log.open("a") as file:
                file.write(json.dumps({"target": name, "seed": number, **found}) + "\n")
            left[name] -= found["inputs"]
            done[name].add(number)
            kinds = Counter(fault["fault"] for fault in found["faults"])
            words = f"{name}, seed {number}: {found['inputs']} inputs, {len(found['faults'])} faults"
            print(words, *(f"   {times} {kind[:200]}" for kind, times in kinds.most_common(4)), sep="\n", flush=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    runs = parts.add_parser("run", help="send what was not sent yet")
    runs.add_argument("--count", type=int, default=100_000, help="inputs (default: 100000)")
    runs.add_argument("--only", choices=list(TARGETS), help="one kind of input")
    runs.add_argument("--until", metavar="HH:MM", help="begin no block after that")
    parts.add_parser("page", help="write the page")
    arguments = parser.parse_args()
    run(arguments.count, arguments.only, arguments.until)
