"""What the engine tells while it works, the bar that shows it on a terminal, and the lines that do elsewhere."""

import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from llmfold.planning import FoldPlan
from llmfold.runtime.launch import is_main
from llmfold.sizes import human_seconds

INTERVAL = 10.0
"""Seconds between lines where there is no terminal; work that ends sooner prints none."""
FOLDING = "folding"
_LAYER = re.compile(r"layer (\d+): (.+)")
_COUNT = re.compile(r"(.+): ([\d,]+) of ([\d,]+)")
_LAYERS, _TOKENS = "layer", "token"


Announce = Callable[[FoldPlan], None]
Clock = Callable[[], float]
"""Seconds since some moment."""


class Listener:
    """Hears of every stage; the engine knows nothing of terminals. As it stands it shows nothing but the final plan."""

    def __init__(self, announce: Announce | None = None) -> None:
        """Set up; ``announce`` is told the final plan."""
        self._announce = announce

    def __enter__(self) -> "Listener":
        """Show what there is to show."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take down what is shown."""

    def opened(self, layers: int) -> None:
        """The model is known, and how many layers it has."""

    def start(self, plan: FoldPlan, done: int) -> None:
        """The plan is final and work on its layers begins, ``done`` of them finished by an earlier run."""
        if self._announce:
            self._announce(plan)

    def stage(self, name: str) -> None:
        """A stage begins, e.g. ``layer 3: measure``, or goes on, e.g. ``sampling tokens: 512 of 32,768``."""

    def advance(self) -> None:
        """One layer is finished and safe on disk."""


@dataclass
class Pace:
    """How far the work at hand is, and how quick.

    Attributes:
        what: the work, such as ``folding``; a change of it starts the clock anew.
        detail: what is done within it, such as ``write``.
        unit: what is counted, in the singular.
        done, total: units; without a total nothing is counted.
        layers: of the model.
        clock: seconds.
    """

    what: str = "starting"
    detail: str = ""
    unit: str = _LAYERS
    done: int = 0
    total: int | None = None
    layers: int | None = None
    clock: Clock = time.monotonic
    _began: float = field(init=False)
    _first: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._began = self.clock()

    def hear(self, name: str) -> None:
        """Take in the name of a stage; see :class:`Listener`."""
        layer, count = _LAYER.fullmatch(name), _COUNT.fullmatch(name)
        if layer and self.what == FOLDING:
            self.detail = layer[2]
        elif layer:
            self.turn(layer[2], int(layer[1]), self.layers)
        elif count:
            done, total = (int(text.replace(",", "")) for text in (count[2], count[3]))
            self.turn(count[1], done, total, _TOKENS)
        else:
            self.turn(name, 0, None)

    def turn(self, what: str, done: int, total: int | None, unit: str = _LAYERS) -> None:
        """Go on with ``what``, or begin it with ``done`` units that are no work of its clock."""
        if what != self.what:
            self.what, self.detail, self._began, self._first = what, "", self.clock(), done
        self.done, self.total, self.unit = done, total, unit

    def finish_layer(self) -> None:
        """Count a layer, if that is what is done."""
        if self.what == FOLDING:
            self.done += 1

    @property
    def remaining(self) -> float | None:
        """Seconds until the work at hand is done at its pace so far; None where that cannot be said."""
        if self.total is None or self.done <= self._first:
            return None
        return (self.total - self.done) * (self.clock() - self._began) / (self.done - self._first)

    @property
    def words(self) -> str:
        """``folding, layer 3 of 30, 14.0 s each, 6 min left``."""
        if self.total is None:
            return self.what
        layers, left = self.unit == _LAYERS, self.remaining
        place = f"layer {min(self.done + 1, self.total):,} of" if layers else f"{self.done:,} of"
        parts = [self.what, f"{place} {self.total:,}"]
        if left is not None:
            each = (self.clock() - self._began) / (self.done - self._first)
            rate = f"{each:.1f} s each" if layers or each > 1 else f"{1 / max(each, 1e-9):,.0f}/s"
            parts += [rate, f"{human_seconds(left)} left"]
        return ", ".join(parts)


class _Paced(Listener, ABC):
    """Follows the work; what is shown of it is up to :meth:`_show`."""

    def __init__(self, announce: Announce | None, clock: Clock) -> None:
        super().__init__(announce)
        self._pace = Pace(clock=clock)
        self._lock = threading.Lock()  # layers are finished in a thread of their own

    def opened(self, layers: int) -> None:
        self._pace.layers = layers

    def start(self, plan: FoldPlan, done: int) -> None:
        super().start(plan, done)
        self._change(lambda: self._pace.turn(FOLDING, done, len(plan.before.layers)))

    def stage(self, name: str) -> None:
        self._change(lambda: self._pace.hear(name))

    def advance(self) -> None:
        self._change(self._pace.finish_layer)

    def _change(self, work: Callable[[], None]) -> None:
        with self._lock:
            work()
            self._show()

    @abstractmethod
    def _show(self) -> None:
        """Show where the work is."""


class Bar(_Paced):
    """A bar with stage, place, pace, and elapsed and remaining time, on standard error."""

    def __init__(
        self, announce: Announce | None = None, console: Console | None = None, clock: Clock = time.monotonic
    ) -> None:
        """Set up; the bar stands while this is open."""
        super().__init__(announce, clock)
        columns = (BarColumn(bar_width=12), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console or Console(stderr=True), transient=True)
        self._task = self._progress.add_task(self._pace.words, total=None)

    def _show(self) -> None:
        pace = self._pace
        text = escape(pace.words) + (f" [dim]{escape(pace.detail)}[/dim]" if pace.detail else "")
        self._progress.update(self._task, description=text, total=pace.total, completed=pace.done)

    def __enter__(self) -> "Listener":
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar down."""
        self._progress.stop()


class Lines(_Paced):
    """A plain line now and then, for logs and pipes."""

    def __init__(
        self, announce: Announce | None = None, stream: TextIO | None = None, clock: Clock = time.monotonic
    ) -> None:
        """Set up; lines go to ``stream``, or to standard error."""
        super().__init__(announce, clock)
        self._stream, self._clock, self._last = stream, clock, clock()

    def _show(self) -> None:
        if self._clock() - self._last >= INTERVAL:
            self._last = self._clock()
            print(self._pace.words, file=self._stream or sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether someone can see a bar."""
    return sys.stderr.isatty()


def listener_class(*, quiet: bool, lines: bool) -> type[Listener]:
    """What hears of a run: a bar on a terminal; elsewhere, if they are wanted, lines; else nothing that is seen."""
    if quiet or not is_main():
        return Listener
    return Bar if on_terminal() else Lines if lines else Listener
