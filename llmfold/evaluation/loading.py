"""Models under evaluation: loaded by stock transformers, and offloaded by accelerate where they do not fit."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from torch import nn
from transformers import AutoModelForCausalLM

from llmfold.architectures import stock_config
from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError
from llmfold.planning.limits import available_memory, room
from llmfold.quiet import quiet_transformers

DTYPES = ("float32", "auto")


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Attributes:
        dtype: ``float32``, or ``auto`` for the dtype they are stored in.
        device: where they run.
        options: further arguments of ``from_pretrained``, such as ``device_map`` and ``max_memory``; a ``device_map``
            here takes the place of llmfold's own decision.
    """

    dtype: str = "float32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    options: dict[str, Any] = field(default_factory=dict)


def max_positions(checkpoint: Checkpoint) -> int:
    """The model's maximum number of positions."""
    return int(stock_config(checkpoint.config).max_position_embeddings)


@contextmanager
def opened(folder: Path, loading: Loading, *, remote_code: bool = False) -> Iterator[nn.Module]:
    """The model in ``folder``, ready to run.

    Args:
        folder: the checkpoint.
        loading: dtype, device and placement.
        remote_code: whether the folder's own modelling file may run (folds whose layers differ in width carry one).

    Raises:
        CheckpointError: transformers cannot load it.
    """
    dtype = "auto" if loading.dtype == "auto" else getattr(torch, loading.dtype)
    with placed(folder, loading) as options:
        try:
            with quiet_transformers():
                model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=dtype, trust_remote_code=remote_code, **options
                ).eval()
            if "device_map" not in options:
                model = model.to(loading.device)
        except Exception as error:  # transformers raises many kinds for a model that it cannot load
            reason = " ".join(str(error).split())
            raise CheckpointError(f"transformers cannot load {folder.name}: {reason}") from error
        with torch.inference_mode():
            yield model


@contextmanager
def placed(folder: Path, loading: Loading) -> Iterator[dict[str, Any]]:
    """Arguments of ``from_pretrained`` that place the model: none where it fits, else offloading by accelerate.

    What is offloaded to disk lies in a temporary folder that goes away on leaving.
    """
    with tempfile.TemporaryDirectory(prefix="llmfold-offload-") as scratch:
        offloading = {"device_map": "auto", "offload_folder": scratch, "max_memory": _rooms()}
        if "device_map" in loading.options or not fits(folder, loading):
            yield {**offloading, **loading.options}
        else:
            yield loading.options


def fits(folder: Path, loading: Loading, limit: int | None = None) -> bool:
    """Whether the weights find room in the device's free memory, and take no more than ``limit`` bytes."""
    tensors = Checkpoint.open(folder).tensors.values()
    wide = 4 if loading.dtype == "float32" else 0
    size = sum(t.nbytes * max(1.0, wide / t.dtype.itemsize) for t in tensors)
    most = int(_rooms().get(loading.device.index or 0 if loading.device.type == "cuda" else "cpu", 0))
    return bool(size <= (most if limit is None else min(most, limit)))


def _rooms() -> dict[int | str, int]:
    """Bytes that a model may take by device; of the host, no more than the cgroup of this process leaves it."""
    free: dict[int | str, int] = dict(get_max_memory())
    free["cpu"] = min(free.get("cpu", 0), available_memory())
    return {device: room(device, size) for device, size in free.items()}
