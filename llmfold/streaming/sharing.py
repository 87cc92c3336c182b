"""What runs of several ratios, and processes of one run, share."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from llmfold.architectures import LayerShape, Role
from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import LayerMethod, Weights
from llmfold.methods.measure import SENSITIVITIES_FILE
from llmfold.methods.merging import Merging
from llmfold.methods.tokens import TOKENS_FILE


def fold_at(
    method: LayerMethod, index: int, weights: Weights, before: LayerShape, afters: Sequence[LayerShape]
) -> Iterator[tuple[dict[Role, Tensor], LayerRecord]]:
    """Fold one layer to several widths, one result at a time; the published method clusters once for all of them."""
    if isinstance(method, Merging):
        yield from method.fold_at(index, weights, before, afters)
        return
    for after in afters:
        yield method.fold(index, weights, before, after)


def inherit(work: Path, finished: Path) -> None:
    """Copy what a finished fold has measured on the dense model into a work folder that has not got it."""
    for name in (TOKENS_FILE, SENSITIVITIES_FILE):
        if (finished / name).exists() and not (work / name).exists():
            partial = work / f"{name}.partial"
            shutil.copyfile(finished / name, partial)
            partial.rename(work / name)


def mean_seconds(spent: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds by stage, averaged over processes that work side by side, so that they add up to time that passed."""
    names = dict.fromkeys(name for seconds in spent for name in seconds)
    return {name: sum(seconds.get(name, 0.0) for seconds in spent) / len(spent) for name in names}
