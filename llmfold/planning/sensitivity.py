"""Measured sensitivities: what each layer would lose by each width, and the widths that hurt least."""

import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmfold.models import LayerShape, ModelShape
from llmfold.planning.legal import Rules, head_options
from llmfold.runtime.storage import fsync_path

SENSITIVITIES_FILE = "llmfold_sensitivities.json"
_BEYOND = 3.0
"""Curves reach this many times the ratio, so that single layers may lose more than the average."""


def kept_neurons(intermediate: int, ratio: float) -> int:
    """Neurons that are left where the curve of a layer ends, when about ``ratio`` of the model will go."""
    return max(1, int(intermediate * (1 - min(0.95, _BEYOND * ratio))))


@dataclass(frozen=True)
class LayerCurves:
    """Predicted error of one layer by the number of units removed, in relative squared error of the residual stream.

    Attributes:
        neurons: ``neurons[n]`` with n neurons removed, n from 0; beyond its end errors are taken to grow as squares.
        heads: ``heads[h]`` with h head units removed (KV groups, or query heads under MQA), h from 0.
    """

    neurons: list[float]
    heads: list[float]

    def error(self, before: LayerShape, after: LayerShape) -> float:
        """Predicted error of narrowing from ``before`` to ``after``; infinite where nothing was measured."""
        heads = before.head_units - before.units_in(after)
        return _at(self.neurons, before.intermediate - after.intermediate) + _at(self.heads, heads)


def _at(curve: list[float], removed: int) -> float:
    last = len(curve) - 1
    if removed <= last:
        return curve[removed]
    return curve[last] * (removed / last) ** 2 if last else math.inf


@dataclass(frozen=True)
class Sensitivities:
    """Curves of all layers."""

    layers: list[LayerCurves]

    def error(self, before: tuple[LayerShape, ...], after: tuple[LayerShape, ...]) -> float:
        """Predicted error of a whole plan: errors of layers add up."""
        return sum(c.error(a, b) for c, a, b in zip(self.layers, before, after, strict=True))

    def shortened(self, removed: Sequence[int]) -> "Sensitivities":
        """The same with at most ``removed[i]`` neurons of layer i gone: elimination goes on from where it stood."""
        return Sensitivities(
            [LayerCurves(c.neurons[: n + 1], c.heads) for c, n in zip(self.layers, removed, strict=True)]
        )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = [{"neurons": c.neurons, "heads": c.heads} for c in self.layers]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        fsync_path(partial)
        partial.rename(path)
        fsync_path(path.parent)

    @classmethod
    def load(cls, path: Path) -> "Sensitivities":
        """Read what :meth:`save` wrote."""
        content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return cls([LayerCurves(c["neurons"], c["heads"]) for c in content])


def adaptive_widths(
    shape: ModelShape,
    curves: Sensitivities,
    wanted: int,
    pinned: Mapping[int, LayerShape],
    rules: Rules,
) -> tuple[LayerShape, ...]:
    """Widths per layer that remove ``wanted`` parameters at the least predicted error.

    Head counts are coarse and neurons fine, so heads are settled first: for every number of head steps, the cheapest
    ones per parameter go and neurons make up the rest, cheapest first too. Marginal errors grow along a curve, which
    makes that greedy choice optimal up to the last step. The number of head steps with the least error wins.
    """
    layers = [pinned.get(i, layer) for i, layer in enumerate(shape.layers)]
    free = [i for i in range(len(layers)) if i not in pinned]
    best = _fill(shape, curves, wanted, layers, free, rules)
    for step in _cheapest(_HeadSteps(shape, curves, rules), layers, free):
        layers[step.layer] = step.after
        if _removed(shape, layers) > wanted + _slack(shape, free, rules):
            break
        best = min(best, _fill(shape, curves, wanted, layers, free, rules))
    return best.layers


@dataclass(order=True, frozen=True)
class _Filled:
    """Widths that meet the budget, ranked by how far they miss it beyond rounding, then by predicted error."""

    missing: int
    error: float
    layers: tuple[LayerShape, ...] = field(compare=False)


@dataclass(order=True, frozen=True)
class _Step:
    """Narrowing one layer by the smallest legal amount, ranked by predicted error per parameter removed."""

    price: float
    layer: int
    after: LayerShape = field(compare=False)


class _Steps(Protocol):
    def __call__(self, index: int, now: LayerShape) -> _Step | None:
        """The next step of layer ``index`` from widths ``now``, or None at its end."""


def _step(shape: ModelShape, curves: Sensitivities, index: int, now: LayerShape, after: LayerShape) -> _Step | None:
    curve, original = curves.layers[index], shape.layers[index]
    rise = curve.error(original, after) - curve.error(original, now)
    saved = shape.layer_parameters(now) - shape.layer_parameters(after)
    return _Step(max(rise, 0.0) / saved, index, after) if rise < math.inf else None


@dataclass(frozen=True)
class _HeadSteps:
    shape: ModelShape
    curves: Sensitivities
    rules: Rules

    def __call__(self, index: int, now: LayerShape) -> _Step | None:
        fewer = [o for o in head_options(self.shape, self.shape.layers[index], self.rules) if o[0] < now.heads]
        if not fewer:
            return None
        return _step(self.shape, self.curves, index, now, LayerShape(now.intermediate, *fewer[0]))


@dataclass(frozen=True)
class _NeuronSteps:
    shape: ModelShape
    curves: Sensitivities
    rules: Rules

    def __call__(self, index: int, now: LayerShape) -> _Step | None:
        multiple = self.rules.width_step(self.shape.layers[index].intermediate)
        narrower = (now.intermediate - 1) // multiple * multiple
        if narrower < multiple:
            return None
        return _step(self.shape, self.curves, index, now, LayerShape(narrower, now.heads, now.kv_heads))


def _cheapest(steps: _Steps, layers: list[LayerShape], free: list[int]) -> Iterator[_Step]:
    """Steps of all free layers in the order of their price; the caller need not apply them."""
    queue = [step for index in free if (step := steps(index, layers[index]))]
    heapq.heapify(queue)
    while queue:
        step = heapq.heappop(queue)
        yield step
        following = steps(step.layer, step.after)
        if following:
            heapq.heappush(queue, following)


def _fill(
    shape: ModelShape,
    curves: Sensitivities,
    wanted: int,
    layers: list[LayerShape],
    free: list[int],
    rules: Rules,
) -> _Filled:
    """Take neurons, cheapest first, until the budget is met as nearly as whole steps allow."""
    narrowed, removed = list(layers), _removed(shape, layers)
    for step in _cheapest(_NeuronSteps(shape, curves, rules), layers, free):
        saved = shape.layer_parameters(narrowed[step.layer]) - shape.layer_parameters(step.after)
        if removed + saved / 2 > wanted:
            break
        narrowed[step.layer] = step.after
        removed += saved
    missing = max(0, round(abs(removed - wanted) - _slack(shape, free, rules)))
    return _Filled(missing, curves.error(shape.layers, tuple(narrowed)), tuple(narrowed))


def _removed(shape: ModelShape, layers: list[LayerShape]) -> int:
    return shape.decoder_parameters - sum(map(shape.layer_parameters, layers))


def _slack(shape: ModelShape, free: list[int], rules: Rules) -> float:
    """Half the largest neuron step of any free layer."""
    steps = (rules.width_step(shape.layers[i].intermediate) for i in free)
    return shape.neuron_parameters * max(steps, default=0) / 2
