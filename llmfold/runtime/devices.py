"""Where to compute, and in which dtype."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmfold.errors import UsageError

_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Matrix instructions on bfloat16: Intel's AMX, AVX-512 of Intel and AMD, and ARM's extension."""


def pick_device(name: str) -> torch.device:
    """Resolve ``auto`` to CUDA where present, else the CPU.

    Raises:
        UsageError: a device that torch does not know or this machine does not have, or one without float64 arithmetic
            that torch can tell the memory of: all but CUDA's and the CPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that cannot hold a number, such as meta, is refused too
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used here: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not supported: pass cpu, or cuda where there is a GPU")
    return device


def compute_dtype(name: str, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype of a run's forward passes.

    Args:
        name: ``float32``, ``bfloat16`` or ``float16``; ``auto`` keeps a stored half dtype where the device multiplies
            it natively, since it is emulated elsewhere at about a ninth of float32's rate, and is else float32.
        device: where they run.
        stored: dtype of the model's weights.

    Raises:
        UsageError: another name.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in named:
        return named[name]
    if name != "auto":
        raise UsageError(f"--compute-dtype is {name!r}; choose from auto, {', '.join(named)}")
    if device.type == "cuda" and stored in (torch.bfloat16, torch.float16):
        return stored
    if device.type == "cpu" and stored == torch.bfloat16 and multiplies_bfloat16():
        return stored
    return torch.float32


def multiplies_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this processor has matrix instructions on bfloat16; False where nothing says so."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    listed = (
        words for key, _, words in (line.partition(":") for line in lines) if key.strip() in ("flags", "Features")
    )
    return not _BFLOAT16_FLAGS.isdisjoint(next(listed, "").split())


def repeatable_attention(x: Tensor) -> AbstractContextManager[None]:
    """Where a GPU is to give gradients of ``x``, attention that adds them up in the same order every time."""
    return sdpa_kernel(SDPBackend.MATH) if x.is_cuda and x.requires_grad else nullcontext()
