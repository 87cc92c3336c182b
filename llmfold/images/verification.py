"""The reload check of an image model: what was written is what was produced, and computes the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmfold.errors import VerificationError
from llmfold.images.program import PROGRAM_FILE, load_program
from llmfold.images.stock import quiet_load
from llmfold.models.refusals import reported
from llmfold.modules.probe import outputs
from llmfold.pipeline.verification import TOLERANCES, logit_difference, read_back, transformers_must

_TOLERANCE = TOLERANCES[torch.float32]


def verify_image(
    folder: Path, kind: type[Any] | None, digests: Mapping[str, str], inputs: tuple[Tensor, ...], wanted: list[Tensor]
) -> dict[str, Any]:
    """Check the written folder before it is published.

    Args:
        folder: the finished work folder.
        kind: the stock class, None where the folder holds a program in its place.
        digests: SHA-256 of each tensor's bytes by name, taken when it was produced.
        inputs: of a forward pass.
        wanted: what the narrower model gave in memory, with weights as they were written.

    Returns:
        What was compared, for the report.

    Raises:
        VerificationError: anything differs; the folder must not be published.
    """
    read_back(folder, digests, sorted(digests))
    module = load_program(folder / PROGRAM_FILE) if kind is None else _stock(folder, kind)
    with transformers_must("run the folded checkpoint"), torch.inference_mode():
        given = outputs(module, inputs)
    if [x.shape for x in given] != [x.shape for x in wanted]:
        raise VerificationError("reloaded, the folded model gives outputs of other shapes than it gave in memory")
    differences = [logit_difference(x, y, torch.float32) for x, y in zip(given, wanted, strict=True)]
    worst = max(differences)
    if not worst <= _TOLERANCE:
        raise VerificationError(
            f"reloaded, the folded model's outputs differ from those in memory by {worst:.2g} (allowed "
            f"{_TOLERANCE:g}); {folder} was not published"
        )
    return {
        "mode": "full",
        "tensors": len(digests),
        "loaded_as": PROGRAM_FILE if kind is None else kind.__name__,
        "relative_logit_difference": {"float32": worst},
        "tolerance": {"float32": _TOLERANCE},
    }


def _stock(folder: Path, kind: type[Any]) -> nn.Module:
    """The folder in its stock class, loaded strictly, in float32."""
    with transformers_must("load the folded checkpoint"):
        model, info = quiet_load(kind, folder)
    complaint = reported(info)
    if complaint:
        raise VerificationError(complaint)
    loaded: nn.Module = model
    return loaded
