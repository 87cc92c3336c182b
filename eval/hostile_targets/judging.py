"""What must hold of every input: a sentence, nothing written outside, no code run, bounds of time and memory."""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile_targets.kind import Kind
from hostile_targets.world import World
from llmfold import LlmfoldError

SECONDS = 20.0
"""Processor time that one input may take; a wait is ended from outside."""
BYTES = 1 << 30
"""Anonymous memory that one input may add."""
LONGEST = 4000
"""Characters of a sentence."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "socket.connect")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")


class TooSlowError(BaseException):
    """An input took longer than it may."""


@dataclass
class Watch:
    """Sees files opened for writing, and code run, by the interpreter's own events."""

    world: World
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin to listen; the interpreter never stops telling."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _RUNS:
            self.seen.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._wrote(event, arguments[0])
        elif event in _CHANGES:
            self._wrote(event, arguments[event in ("os.link", "os.symlink", "os.rename")])

    def _wrote(self, event: str, place: Any) -> None:
        if isinstance(place, int) or place is None:
            return
        path = os.path.abspath(os.fsdecode(place))
        allowed = (self.world.out, self.world.case, self.world.root / "home")
        if not any(path.startswith(str(folder)) for folder in allowed) and path not in ("/dev/null",):
            self.seen.append(f"{event} {path}")


@dataclass
class Verdict:
    """What became of an input: ``fault`` is None where all is well, ``sentence`` None where it was accepted."""

    fault: str | None
    sentence: str | None
    seconds: float
    memory: int


def judge(world: World, watch: Watch, kind: Kind, value: Any) -> Verdict:
    """Put one input into an empty case, send it, and say what happened; only what it is sent through is watched."""
    world.clean()
    kind.place(world, value)
    watch.seen.clear()
    before = _anonymous(reset=True)
    fault: str | None = None
    sentence: str | None = None
    start = time.process_time()
    try:
        with _limited(), _settled():
            watch.on = True
            kind.send(world, value)
    except LlmfoldError as error:
        sentence = str(error)
        fault = _bad_sentence(sentence)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} [{_where(error)}]"
    finally:
        watch.on = False
    seconds = time.process_time() - start
    memory = max(0, _anonymous() - before)
    if fault is None and watch.seen:
        fault = f"outside: {watch.seen[0]}"
    if fault is None and memory > BYTES:
        fault = f"took {memory >> 20} MiB"
    return Verdict(fault or world.intact(), sentence, seconds, memory)


def _bad_sentence(text: str) -> str | None:
    if not text.strip() or "\n" in text or len(text) > LONGEST or not text.isprintable():
        return f"not one printable sentence: {text[:120]!r}"
    return None


def _where(error: BaseException) -> str:
    """The last place of llmfold's own in a traceback, and the last of all."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [f"{Path(name).name}:{line}" for name, line in frames if "/llmfold/" in name]
    last = f"{Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
    return " ".join(dict.fromkeys([*own[-2:], last]))


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlowError(f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """What transformers logs of odd configs is not printed."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _anonymous(reset: bool = False) -> int:
    """Bytes of resident memory: those of now, the peak being forgotten, or the peak since."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    word = "VmRSS" if reset else "VmHWM"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(word):
            return int(line.split()[1]) * 1024
    return 0
