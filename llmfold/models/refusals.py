"""Sentences for what a model's class has no place for, misses or refuses."""

from llmfold.errors import CheckpointError


def not_part(name: str, class_name: str) -> CheckpointError:
    """A tensor is stored that the class does not have."""
    return CheckpointError(
        f"tensor {name} is not part of {class_name}: remove it if the model is to compute without it, as transformers "
        "does; llmfold will not guess"
    )


def missing(name: str) -> CheckpointError:
    """A tensor of the class is not stored."""
    return CheckpointError(f"tensor {name} is missing from the checkpoint: download the model again")


def reason(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
