"""Reading a layer, or a piece of it, ahead and writing one behind, so that the device does not wait for the disk."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from torch import Tensor

from llmfold.runtime.closing import Closing

Layer = dict[str, Tensor]
"""Tensors of a layer by role."""
Key = TypeVar("Key")
"""Says which layer, or which piece of one."""


class ReadAhead(Closing, Generic[Key]):
    """Reads the next layer in a thread while one is being worked on.

    One layer waits at a time. A mapped layer takes no anonymous memory; a pinned one takes its size in host memory.
    What goes wrong in the thread is raised when its layer is taken, after the work on those before it.
    """

    def __init__(
        self, read: Callable[[Key], Layer], confirm: Callable[[Key], None], order: Iterable[Key], *, pin: bool
    ) -> None:
        """Start reading the first layer.

        Args:
            read: returns a layer.
            confirm: raises if a layer's source changed after it was read.
            order: layers in the order they will be taken.
            pin: copy layers into page-locked memory, for CUDA.
        """
        self._read, self._confirm, self._left, self._pin = read, confirm, list(order), pin
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="llmfold-read")
        self._next: Future[Layer] | None = None
        self._fetch()

    def take(self, key: Key) -> Layer:
        """Return the layer of ``key``, which must be the next in order, and start on the one after it."""
        assert self._next is not None
        assert self._left[0] == key, f"{key} is not the next of {self._left}"
        layer = self._next.result()
        self._confirm(key)
        self._left.pop(0)
        self._fetch()
        return layer

    def _fetch(self) -> None:
        self._next = self._pool.submit(self._load, self._left[0]) if self._left else None

    def _load(self, key: Key) -> Layer:
        layer = self._read(key)
        return {role: tensor.pin_memory() for role, tensor in layer.items()} if self._pin else layer

    def close(self) -> None:
        """End the thread, after the read under way."""
        self._next = None
        self._pool.shutdown(wait=True, cancel_futures=True)


class WriteBehind:
    """Writes a finished layer in a thread while the next is being worked on, if enabled; at once if not.

    Writes keep their order. What goes wrong is raised at a later call, and on leaving the block at the latest; nothing
    is written after it.
    """

    def __init__(self, *, enabled: bool, waiting: int = 1) -> None:
        """Set up.

        Args:
            enabled: whether there is a thread.
            waiting: writes that may be under way at once; each keeps what it holds in memory.
        """
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="llmfold-write") if enabled else None
        self._pending: deque[Future[None]] = deque()
        self._waiting, self._failed = waiting, False

    def submit(self, write: Callable[[], None]) -> None:
        """Start a write, once there is room for it."""
        if self._pool is None:
            write()
            return
        self._finish(self._waiting - 1)
        self._pending.append(self._pool.submit(self._attempt, write))

    def _attempt(self, write: Callable[[], None]) -> None:
        if self._failed:  # what follows could count as safe what was lost
            return
        try:
            write()
        except BaseException:
            self._failed = True
            raise

    def wait(self) -> None:
        """Return once everything is written."""
        self._finish(0)

    def _finish(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()

    def __enter__(self) -> "WriteBehind":
        """The object itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Finish the write under way, and after an error no other."""
        if self._pool is None:
            return
        # A write under way is finished even after an interrupt: what it journals is whole.
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()
