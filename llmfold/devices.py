"""Where to compute."""

import torch

from llmfold.errors import UsageError


def pick_device(name: str) -> torch.device:
    """Resolve ``auto`` to CUDA where present, else the CPU.

    Raises:
        UsageError: a device that torch does not know or this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that cannot hold a number, such as meta, is refused too
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used here: {reason}") from error
    return device
