"""Models under evaluation: held in the dtype of the arithmetic, else as stored, else offloaded by accelerate."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from torch import nn

from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.dtypes import dtype_name
from llmfold.errors import CheckpointError
from llmfold.models import stock_config
from llmfold.models.casting import load_model, refuse_not_finite
from llmfold.models.settings import POSITIONS, setting, text_config
from llmfold.runtime.devices import compute_dtype
from llmfold.runtime.limits import available_memory, room

Limits = Mapping[int | str, int]


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Attributes:
        dtype: in which they compute; None for the dtype that each is stored in.
        device: where they run.
        limits: most bytes that a model may take by device, or under "all" for those not named; None for what is free.
    """

    dtype: torch.dtype | None = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    limits: Limits | None = None

    @classmethod
    def of(cls, name: str, device: torch.device, *folders: Path, limits: Limits | None = None) -> "Loading":
        """Load all of ``folders`` in one dtype: see :func:`compute_dtype`, half dtypes that differ giving float32."""
        stored = [Checkpoint.open(folder).dtype for folder in folders]
        return cls(compute_dtype(name, device, reduce(torch.promote_types, stored)), device, limits)

    @property
    def words(self) -> str:
        """The dtype by its name."""
        return "as stored" if self.dtype is None else dtype_name(self.dtype)


def max_positions(checkpoint: Checkpoint) -> int:
    """The model's maximum number of positions."""
    return int(setting(text_config(stock_config(checkpoint.config)), "max_position_embeddings") or POSITIONS)


@contextmanager
def opened(folder: Path, loading: Loading, *, remote_code: bool = False, checked: bool = True) -> Iterator[nn.Module]:
    """The model in ``folder``, ready to run.

    Args:
        folder: the checkpoint.
        loading: dtype, device and placement.
        remote_code: whether the folder's own modelling file may run (folds whose layers differ in width carry one).
        checked: whether its logits are looked at, which makes the host wait for an accelerator at every pass.

    Raises:
        CheckpointError: transformers cannot load it; inside, it computes NaN or infinity.
    """
    dtype = loading.dtype or Checkpoint.open(folder).dtype
    with placed(folder, loading) as options:
        try:
            model = load_model(folder, dtype, loading.device, remote_code=remote_code, **options)
        except Exception as error:  # transformers raises many kinds for a model that it cannot load
            reason = " ".join(str(error).split())
            raise CheckpointError(f"transformers cannot load {folder.name}: {reason}") from error
        if checked:
            refuse_not_finite(model)
        with torch.inference_mode():
            yield model


@contextmanager
def placed(folder: Path, loading: Loading) -> Iterator[dict[str, Any]]:
    """Arguments of :func:`load_model` that place the model: none where it fits, else as stored, else offloading.

    What is offloaded to disk lies in a temporary folder that goes away on leaving.
    """
    with tempfile.TemporaryDirectory(prefix="llmfold-offload-") as scratch:
        if fits(folder, loading):
            yield {}
        elif fits(folder, replace(loading, dtype=None)):
            yield {"as_stored": True}
        else:
            yield {"device_map": "auto", "offload_folder": scratch, "max_memory": _rooms(loading)}


def fits(folder: Path, loading: Loading) -> bool:
    """Whether the weights find room in the device's free memory and within its limit, in the dtype they compute in."""
    name = loading.device.index or 0 if loading.device.type == "cuda" else "cpu"
    return Checkpoint.open(folder).size_in(loading.dtype) <= _rooms(loading).get(name, 0)


def _rooms(loading: Loading) -> dict[int | str, int]:
    """Bytes that a model may take by device, as accelerate calls them.

    Of GPUs the one that is named, or all where none is; of the host, no more than the cgroup of this process leaves it.
    """
    gpus: dict[int | str, int] = {}
    if loading.device.type == "cuda":
        wanted = loading.device.index
        gpus = {name: free for name, free in get_max_memory().items() if name != "cpu" and wanted in (None, name)}
    free = gpus | {"cpu": available_memory()}
    return {name: room(name, size, loading.limits) for name, size in free.items()}
