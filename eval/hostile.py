"""Send hostile files through all that reads them, and count what became of them.

    python eval/hostile.py run --count 100000
    python eval/hostile.py page

Inputs come in blocks of one kind, each from a seed of its own, and each block runs in a process of its own: a crash or
a hang ends the block and is a fault. Finished blocks stand in ``FOLDER/blocks.jsonl`` and are not run again.
"""

import argparse
import gc
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

from hostile_targets import BYTES, SECONDS, TARGETS, Verdict, Watch, World, draw, judge  # noqa: E402

from llmfold.environment import machine_words, versions  # noqa: E402

PAGE = Path(__file__).parent / "results" / "hostile.md"
BLOCK = 250
SPARE = 3 << 30
"""Address space that a block may add to that of the libraries."""


def send(world: World, watch: Watch, name: str, number: int, count: int, current: Path) -> dict[str, Any]:
    """Draw and judge the inputs of a block."""
    kind = TARGETS[name]
    verdicts: list[Verdict] = []
    faults: list[dict[str, Any]] = []

    def each(value: Any) -> None:
        current.write_text(repr(value)[:5000], errors="replace")
        verdict = judge(world, watch, kind, value)
        verdicts.append(verdict)
        if verdict.fault:
            faults.append({"fault": verdict.fault, "input": repr(value)[:2000]})

    draw(world, kind, number, count, each)
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
    deadline = time.monotonic() + 600 + count * SECONDS
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
    total = sum(kind.share for kind in TARGETS.values())
    left = {name: max(1, round(count * kind.share / total)) for name, kind in TARGETS.items()}
    done = {name: {line["seed"] for line in _lines(log) if line["target"] == name} for name in TARGETS}
    for line in _lines(log):
        left[line["target"]] -= line["inputs"]
    world = World(FOLDER / "world")
    watch = Watch(world)
    os.chdir(FOLDER)
    (world.root / "home").mkdir(exist_ok=True)
    send(world, watch, "results of eval", 0, 1, world.root / "home" / "current")  # what hypothesis does once, done once
    gc.freeze()
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


FOUND = """\
- JSON nested a few hundred levels overflowed what walks it; a hundred megabytes of empty lists took gigabytes; a
  key given twice among a million was looked for a million times. Now 32 MB, a million values, 64 levels.
- YAML of recipes and cards: aliases and merges that stand for billions of values, tags and dates that Python cannot
  make (`!!bool maybe`, `2024-99-99`), integers too long to print, deep nesting. Now one loader with bounds, one
  kind of error.
- `config.json`: a billion layers, sizes of thousands of digits, lists where words are expected (`model_type`,
  `layer_types`, `hidden_act`, `rope_type`), `per_layer_config` with an index of 5,000 digits, rotary parameters of
  other types, `rms_norm_eps` NaN.
- Sentences quoted escape codes, lone surrogates, line breaks and megabytes. Now every sentence is one printable
  line of at most 2,000 characters; what transformers says of an odd config is not printed.
- A lone surrogate in `config.json`, or a file name that is no UTF-8, ended a fold in its last step.
- Side files of any size were read into memory and copied. Now they are copied by blocks, and 1 GiB is the bound.
- A generation config that is a link was followed out of the folder before links were refused.
- Packed texts that unpack without end, and tables with one line of gigabytes. Now 2^28 characters, 2^26 bytes a
  line.
- **A value nested 10,000 levels in a `.jsonl` ended the process** (a stack overflow in the reader of tables). Now
  64 levels.
- A `.csv` of twenty thousand columns was read for minutes. Now a thousand.
- `report.json` and `compare.json`: nesting, templates that fail on what a report should hold, runs whose numbers
  are lists or objects.
- Settings of a tokenizer that are not numbers (`model_max_length: {}`).
- A hub that falls silent was waited for without end: its client sets no limit. Now two minutes.
"""

BY_COVERAGE = """## By coverage

Inputs of bytes that [atheris](../fuzz.py) 3.0.0 makes by what takes new branches, seed 1, on the same machine: 100,000
each through headers, index, config and recipe. None ended otherwise than in a result or in a printable sentence.

```bash
for target in header index config recipe; do python eval/fuzz.py $target --runs 100000; done
```
"""


def page() -> None:
    """Write the page."""
    lines = _lines(FOLDER / "blocks.jsonl")
    rows = []
    for name in TARGETS:
        mine = [line for line in lines if line["target"] == name]
        if mine:
            inputs, refused = (sum(line.get(key, 0) for line in mine) for key in ("inputs", "refused"))
            faults = sum(len(line["faults"]) for line in mine)
            longest, memory = (max(line.get(key, 0) for line in mine) for key in ("longest", "memory"))
            rows.append([name, inputs, refused, inputs - refused - faults, faults, longest, memory / 1e6])
    total = [sum(row[column] for row in rows) for column in range(1, 5)]
    rows.append(["all", *total, max(row[5] for row in rows), max(row[6] for row in rows)])
    table = "\n".join("| {} | {:,} | {:,} | {:,} | {} | {:.1f} | {:,.0f} |".format(*row) for row in rows)
    made = ", ".join(f"{name} {number}" for name, number in versions("hypothesis").items() if number)
    PAGE.write_text(
        "# Hostile files\n\n"
        "Inputs that somebody could make to do harm, sent through all that reads files, in process. An input must end "
        "in a result or in one printable sentence: no other exception, crash or hang, nothing written outside the "
        "output, no file outside copied into it, no code run, "
        f"at most {BYTES >> 20} MiB of memory more and {SECONDS:g} seconds.\n\n"
        "| inputs | number | refused | accepted | faults | longest, s | most memory, MB |\n"
        f"|---|---:|---:|---:|---:|---:|---:|\n{table}\n\n"
        "The first 55,695 were sent before the stock class came to tell of all families, the others after it. "
        "Seconds are of one processor, on a machine "
        "that others shared. Bombs are small files that stand for much, at bounds and beyond; whole folds are inputs "
        "that are likely to be accepted, through the command line.\n\n"
        f"{BY_COVERAGE}\n## Found by earlier runs of about 22,000 inputs, and mended\n\n"
        f"{FOUND}\nEach has a test in `tests/messy/test_hostile.py`, which also sends a few inputs of each kind; "
        "every request of a push that is refused, cut or never answered is in `tests/hub/test_requests.py`.\n\n"
        "Made by `python eval/hostile.py run --count 100000` (seeds from 0 on, a block each; it goes on where it "
        f"stopped) and `python eval/hostile.py page`: {machine_words()} of {os.cpu_count()} CPUs; {made}.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    runs = parts.add_parser("run", help="send what was not sent yet")
    runs.add_argument("--count", type=int, default=100_000, help="inputs (default: 100000)")
    runs.add_argument("--only", choices=list(TARGETS), help="one kind of input")
    runs.add_argument("--until", metavar="HH:MM", help="begin no block after that")
    parts.add_parser("page", help="write the page")
    arguments = parser.parse_args()
    if arguments.part == "page":
        page()
    else:
        run(arguments.count, arguments.only, arguments.until)
