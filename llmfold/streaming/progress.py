"""What the engine tells while it works, and the bar that shows it on a terminal."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmfold.planning import FoldPlan


class Listener(Protocol):
    """Hears of every stage; the engine knows nothing of terminals."""

    def start(self, plan: FoldPlan, done: int) -> None:
        """The plan is final and work on its layers begins, ``done`` of them finished by an earlier run."""

    def stage(self, name: str) -> None:
        """A stage begins, e.g. ``layer 3: cluster``."""

    def advance(self) -> None:
        """One unit is finished and safe on disk."""


Announce = Callable[[FoldPlan], None]


class Silent:
    """Says nothing, but for the final plan to whoever asked for it."""

    def __init__(self, announce: Announce | None = None) -> None:
        self._announce = announce

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to take down."""

    def start(self, plan: FoldPlan, done: int) -> None:
        """See :class:`Listener`."""
        if self._announce:
            self._announce(plan)

    def stage(self, name: str) -> None:
        """See :class:`Listener`."""

    def advance(self) -> None:
        """See :class:`Listener`."""


class Bar:
    """A progress bar over layers with stage and remaining time, on standard error."""

    def __init__(self, announce: Announce | None = None) -> None:
        self._announce = announce
        self._progress = Progress(
            TextColumn("[bold]folding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None)

    def start(self, plan: FoldPlan, done: int) -> None:
        """See :class:`Listener`."""
        if self._announce:
            self._announce(plan)
        self._progress.update(self._task, total=len(plan.before.layers), completed=done)

    def stage(self, name: str) -> None:
        """See :class:`Listener`."""
        self._progress.update(self._task, description=name)

    def advance(self) -> None:
        """See :class:`Listener`."""
        self._progress.advance(self._task)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def on_terminal() -> bool:
    """Whether someone can see a bar."""
    return sys.stderr.isatty()
