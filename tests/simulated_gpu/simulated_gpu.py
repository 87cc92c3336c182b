"""A GPU made of the CPU, as a pytest plugin: tensors that say they are on ``cuda:0``, and refuse to meet others.

What runs there computes on the CPU, so that a test sees which tensors were left on the wrong side, and nothing of
kernels, streams or speed. It stands on torch's own ways to fake a device (``FakeTensorMode`` takes the same) and on
:file:`guard.cpp`, which must be preloaded.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
TOTAL = 80 << 30
BETWEEN_DEVICES = ("aten::copy_", "aten::_to_copy", "aten::to")
INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
limit = TOTAL
"""Bytes that one tensor may take on the GPU."""


class OnGpu(Tensor):
    """A tensor that is on the GPU by its own account; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        found = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )
        found.held = held
        return found

    def __repr__(self) -> str:
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(function, args, kwargs or {})


class Gpu(TorchDispatchMode):
    """Has tensors that are made with ``device="cuda"`` made there."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do one operation on the CPU; its results are where the operation would have left them.

    Raises:
        RuntimeError: tensors of both devices meet.
        torch.OutOfMemoryError: a result is larger than ``limit``.
    """
    name, leaves = function.name().partition(".")[0], tree_leaves((args, dict(kwargs)))
    ours = [leaf for leaf in leaves if isinstance(leaf, OnGpu)]
    if ours and name not in BETWEEN_DEVICES:
        _check_alike(name, args, leaves)
    device = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    stays = bool(ours) if device is None else device.type == "cuda"
    result = function(*tree_map(_on_cpu, args), **tree_map(_on_cpu, dict(kwargs)))
    if (written := _written(function, args, kwargs)) is not None:
        return written
    if not stays:  # what is copied to the host is a copy
        return tree_map(lambda x: x.clone() if any(x is our.held for our in ours) else x, result)
    if not function._schema.returns or function._schema.returns[0].alias_info is None:
        _check_room(result)
    return tree_map(lambda x: _on_gpu(x, ours), result)


def _check_alike(name: str, args: Sequence[Any], leaves: Sequence[Any]) -> None:
    others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.dim()]
    if name in INDEXING and isinstance(args[0], OnGpu):  # places may lie on the host, values may not
        others = [x for x in args[2:3] if isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.dim()]
    if others:
        raise RuntimeError(f"tensors of the CPU and of the GPU meet in {name}: {[tuple(x.shape) for x in others]}")


def _check_room(result: Any) -> None:
    if any(x.numel() * x.element_size() > limit for x in tree_leaves(result) if isinstance(x, Tensor)):
        raise torch.OutOfMemoryError("the simulated GPU is full")


def _on_cpu(x: Any) -> Any:
    if isinstance(x, torch.device):
        return CPU if x.type == "cuda" else x
    return x.held if isinstance(x, OnGpu) else x


def _on_gpu(x: Any, ours: Sequence[OnGpu]) -> Any:
    if not isinstance(x, Tensor):
        return x
    known = next((our for our in ours if our.held is x), None)
    return OnGpu(x) if known is None else known


def _written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument that an operation in place has written to and returns."""
    returned = function._schema.returns
    if len(returned) != 1 or returned[0].alias_info is None or not returned[0].alias_info.is_write:
        return None
    targets = zip(function._schema.arguments, [*args, *[None] * len(function._schema.arguments)], strict=False)
    written = [kwargs.get(a.name, value) for a, value in targets if a.alias_info is not None and a.alias_info.is_write]
    return written[0]


class _Generator(torch.Generator):
    def __new__(cls, device: object = "cpu") -> "_Generator":
        return super().__new__(cls, CPU)


class _Event:
    def query(self) -> bool:
        """Not for the host to say: that a stream has not come so far is no mistake."""
        return False


class _Stream:
    device = GPU

    def __init__(self, device: object = None) -> None:
        """All streams are one: work is over when it is given."""

    def wait_event(self, event: object) -> None:
        """It has come."""

    def record_event(self) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        """Nothing is under way."""


def _limit(fraction: float) -> None:
    global limit
    limit = int(fraction * TOTAL)


def _placing(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A factory that torch would have copy numbers to the GPU by itself."""

    def placed(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        return made if device is None else made.to(device)

    return placed


def _show_interpreter() -> None:
    """Let Triton's interpreter see the numbers of tensors on the GPU."""
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__

    def seeing(self: Any, *args: Any, **kwargs: Any) -> None:
        launch(self, *tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))

    GridExecutor.__call__ = seeing


def pytest_configure() -> None:
    """Put the GPU in place, before tests ask whether there is one."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        _show_interpreter()
    to, cuda = Tensor.to, torch.cuda

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args = tuple(GPU if isinstance(x, str | torch.device) and torch.device(x).type == "cuda" else x for x in args)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = GPU
        return to(self, *args, **kwargs)

    Tensor.to = moved  # type: ignore[method-assign]
    Tensor.pin_memory = lambda self, *_: self.clone()  # type: ignore[method-assign, assignment]
    torch.Generator = _Generator  # type: ignore[misc]
    _device_constructors()  # which remembers the factories as they are now
    torch.tensor, torch.as_tensor = _placing(torch.tensor), _placing(torch.as_tensor)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    properties = type("Properties", (), {"total_memory": TOTAL, "name": "simulated"})
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_lazy_init": lambda: None,
        "get_device_capability": lambda *_: (7, 0),  # too old for kernels that are not interpreted
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (TOTAL, TOTAL),
        "set_per_process_memory_fraction": _limit,
        "empty_cache": lambda: None,
        "memory_reserved": lambda *_: 0,
        "_sleep": lambda _: None,
        "synchronize": lambda *_: None,
        "get_rng_state": lambda *_: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
    }
    for name, value in replaced.items():
        setattr(cuda, name, value)


@pytest.fixture(autouse=True)
def on_gpu() -> Iterator[None]:
    with Gpu():
        yield
