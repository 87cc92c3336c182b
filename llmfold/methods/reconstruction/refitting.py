"""The refit of one consumer: the ridge that rows held back like best."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from llmfold.methods.base import Weights
from llmfold.models import Role
from llmfold.repair.least_squares import ActivationSums, refit, refit_bias, relative_error

RIDGES = (0.03, 0.3, 1.0, 3.0)
"""Pull of the consumer's rows towards what they were, as fractions of the mean diagonal; held-back rows choose."""


class Sums(NamedTuple):
    """Sums over the rows to fit on, and over all rows."""

    train: ActivationSums
    whole: ActivationSums


class Consumer(NamedTuple):
    """A dense consumer: its role, the tensors of its coupling, and the sums over what it reads."""

    role: Role
    weights: Weights
    sums: Sums


class Refitted(NamedTuple):
    """A consumer by role, refit on the rows to fit on and on all rows, and what the report says of it."""

    train: dict[Role, Tensor]
    whole: dict[Role, Tensor]
    record: dict[str, Any]


def refit_consumer(consumer: Consumer, kept: Tensor, judged: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Refitted:
    """Refit a consumer at the ridge that held-back rows like best.

    Args:
        consumer: as it was, with the sums over what it reads.
        kept: features that stay.
        judged: rows that judge: all features (t, n), targets (t, d) and row weights (t,).
    """
    sums, dense = consumer.sums, consumer.weights[consumer.role].T
    bias = consumer.weights.get(f"{consumer.role}_bias")

    def fitted(over: ActivationSums, ridge: float) -> tuple[Tensor, Tensor | None]:
        new = refit(over if bias is None else over.centred(), dense, kept, ridge)
        return new, None if bias is None else refit_bias(over, dense, kept, new, bias)

    index = kept.to(dense.device)
    candidates = [(dense[index], bias), *(fitted(sums.train, ridge) for ridge in RIDGES)]
    errors = consumer_errors(candidates, judged, index)
    best = min(range(len(RIDGES)), key=lambda i: errors[i + 1])
    record = {"ridge": RIDGES[best], "error_before_repair": errors[0], "error_after_repair": errors[best + 1]}
    whole = fitted(sums.whole, RIDGES[best])
    role = consumer.role
    return Refitted(_consumer(role, *candidates[best + 1]), _consumer(role, *whole), record)


def consumer_errors(
    candidates: Sequence[tuple[Tensor, Tensor | None]],
    rows: Iterable[tuple[Tensor, Tensor, Tensor]],
    kept: Tensor | slice,
) -> list[float]:
    """Relative squared errors of consumers (k, d) with biases (d,), in one pass over some rows.

    Args:
        candidates: the consumers.
        rows: all features (t, n), targets (t, d) and row weights (t,).
        kept: the k features that consumers read.
    """
    wrong, total = [0.0] * len(candidates), 0.0
    for features, targets, w in rows:
        total += float((targets.square().sum(1) * w).double().sum())
        some = features[:, kept]
        for number, (consumer, bias) in enumerate(candidates):
            rest = targets - some @ consumer - (0 if bias is None else bias)
            wrong[number] += float((rest.square().sum(1) * w).double().sum())
    return [relative_error(value, total) for value in wrong]


def _consumer(role: Role, rows: Tensor, bias: Tensor | None) -> dict[Role, Tensor]:
    return {role: rows.T.contiguous()} | ({} if bias is None else {f"{role}_bias": bias})
