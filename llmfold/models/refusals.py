"""Sentences for what a model's class has no place for, misses or refuses."""

from collections.abc import Collection, Mapping

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


def reported(info: Mapping[str, Collection[object]]) -> str | None:
    """The first complaint in what transformers says of its loading, None where there is none."""
    complaints = ((kind.replace("_", " "), names) for kind, names in info.items() if names)
    return next((f"transformers reports {words}: {min(map(str, names))}" for words, names in complaints), None)


def reason(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
