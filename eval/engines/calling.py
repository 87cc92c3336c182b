"""Running an engine's runner on jobs: as a process of its own, with a limit, going on after a model that ends it."""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from environments import Engine
from runner import MARK

Answers = dict[str, Mapping[str, Any]]
LATE = "not done after"
_SHOWN = 300
_RAN = re.compile(r"^== (\d+\.\d+) s: ", re.M)


def call(engine: Engine, environments: Path, jobs: Sequence[Mapping[str, Any]], log: Path) -> Answers:
    """Answers of an engine by the names of jobs; one that ended its process or took too long has an ``error``.

    Args:
        engine: which.
        environments: folder of the environments.
        jobs: see runner.py.
        log: file that what the engine prints is added to.
    """
    answers: Answers = {}
    waiting = list(jobs)
    while waiting:
        batch = waiting[:1] if engine.alone else waiting
        lines, ended = _run(engine, environments, batch, log)
        answers.update({line["name"]: line for line in lines if "begins" not in line})
        begun = [line["name"] for line in lines if "begins" in line]
        culprit = next((name for name in begun if name not in answers), None if begun else waiting[0]["name"])
        if culprit is not None:
            answers[culprit] = {"name": culprit, "error": ended}
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{MARK}{json.dumps(answers[culprit])}\n")
        waiting = [job for job in waiting if job["name"] not in answers]
    return answers


def recorded(log: Path) -> Answers:
    """The answers that a file of what an engine printed holds, the last where there are several of a name."""
    lines = _whole_lines(log.read_text(encoding="utf-8")) if log.exists() else []
    found = [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK)]
    return {line["name"]: line for line in found if "begins" not in line}


def seconds_spent(log: Path) -> float:
    """Seconds that the processes lasted whose print a file holds, from start to end, all of them together."""
    return sum(map(float, _RAN.findall(log.read_text(encoding="utf-8")))) if log.exists() else 0.0


def _run(
    engine: Engine, environments: Path, jobs: Sequence[Mapping[str, Any]], log: Path
) -> tuple[list[dict[str, Any]], str]:
    """Lines that a runner answered, and how its process ended."""
    # What decides modules and threads of the environment that runs this must not of the engine's.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "jobs.json"
        path.write_text(json.dumps(jobs))
        command = [str(engine.python(environments)), str(engine.script), str(path)]
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=engine.seconds * len(jobs), env=own, check=False,
                cwd=scratch,  # where engines may leave logs of their own
            )  # fmt: skip
            out, err, ended = done.stdout, done.stderr, f"its process ended with {done.returncode}: "
            ended += " ".join(err.split())[-_SHOWN:]
        except subprocess.TimeoutExpired as late:
            out, err = (_text(stream) for stream in (late.stdout, late.stderr))
            ended = f"{LATE} {engine.seconds * len(jobs)} s"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"== {time.monotonic() - start:.2f} s: {' '.join(command)}\n{out}\n{err}\n")
    # A line without an end is one of a process that was ended while it wrote.
    return [json.loads(line[len(MARK) :]) for line in _whole_lines(out) if line.startswith(MARK)], ended


def _whole_lines(text: str) -> list[str]:
    return text.split("\n")[:-1]


def _text(stream: bytes | str | None) -> str:
    return stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""
