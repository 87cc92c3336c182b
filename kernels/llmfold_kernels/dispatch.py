"""Which of a kernel's two versions runs: Triton where it can, the torch twin everywhere else."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@cache
def installed() -> bool:
    """Whether triton can be imported."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET=1 since before triton was imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_triton(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = KERNEL_DTYPES) -> bool:
    """Whether the Triton version can run on all these tensors: on CUDA (or interpreted), and of a dtype it knows."""
    if not installed():
        return False
    return all(t.dtype in dtypes and (interpreted() or _is_capable(t.device)) for t in tensors)


@cache
def _is_capable(device: torch.device) -> bool:
    """Whether this is a GPU from Ampere on: bf16 tensor cores, and shared memory for the tiles."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def launching_on(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one: Triton launches there, wherever its arguments lie."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a block may have on a GPU; elsewhere what Hopper has, so that its tiles are what is tested."""
    if device.type != "cuda":
        return _HOPPER_MEMORY
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))


def tiles(interpreted_size: int, **usual: int) -> dict[str, int]:
    """Return a kernel's configuration; the interpreter pays for every operation, so there all tiles are large."""
    if not interpreted():
        return usual
    return {name: size if name.startswith("num_") else interpreted_size for name, size in usual.items()}


def blocks_of(length: int, block: int) -> int:
    """Blocks of ``block`` that cover ``length``, at least one."""
    return max(1, -(-length // block))


def splits_for(programs: int, most: int) -> int:
    """Into how many parts to cut a loop so that few programs still fill a device; a function of shapes alone.

    The number decides where sums are cut, so it must not depend on the device: the same input gives the same bytes.
    """
    return max(1, min(most, _PROGRAMS // max(1, programs)))


_PROGRAMS = 264
"""Two to each multiprocessor of a Hopper GPU: one more than fits makes everything wait for a second round."""
_HOPPER_MEMORY = 232_448
WIDE_MEMORY = 196_608
"""From so much shared memory on tiles are 256 x 128 and take 144 KiB: measured on Hopper only, which has 227."""
