"""A narrower model as a program of ``torch.export``, for widths that no stock class holds."""

from pathlib import Path

import torch
from torch import Tensor, nn

from llmfold.errors import OutputError, VerificationError
from llmfold.modules.probe import outputs

PROGRAM_FILE = "model.pt2"


class _Plain(nn.Module):
    """A model whose outputs are plain tensors, so that its program needs no class of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The model's floating-point outputs, in their order."""
        return tuple(outputs(self.model, inputs))


def save_program(path: Path, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Write the model's program, for batches of any size.

    Args:
        path: of the file.
        model: in evaluation.
        inputs: positional arguments, batch first, a batch of at least two.

    Raises:
        OutputError: torch.export cannot trace the model.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            program = torch.export.export(_Plain(model), inputs, dynamic_shapes=((({0: batch},) * len(inputs)),))
    except Exception as error:  # torch.export raises what it likes
        reason = " ".join(str(error).split())[:200]
        raise OutputError(f"torch.export cannot write the narrower model as a program: {reason}") from error
    torch.export.save(program, path)


def load_program(path: Path) -> nn.Module:
    """The module of a program that was just written; raises VerificationError."""
    try:
        return torch.export.load(path).module()
    except Exception as error:  # of any kind
        reason = " ".join(str(error).split())[:200]
        raise VerificationError(f"the program that was written does not load: {reason}") from error
