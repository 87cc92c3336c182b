"""Measured sensitivities: what each layer would lose by each width, and the widths that hurt least."""

import heapq
import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from llmfold.models import LayerShape, ModelShape
from llmfold.planning.legal import Rules, head_options
from llmfold.runtime.storage import replace_text

Part = Literal["heads", "neurons"]
PARTS: tuple[Part, ...] = get_args(Part)
SENSITIVITIES_FILE = "llmfold_sensitivities.json"
_BEYOND = 3.0
"""Curves reach this many times the ratio, so that single layers may lose more than the average."""
HALF = 0.5
"""Share of neurons that is taken from all layers alike to see what they cost beside heads: curves reach that far."""


def kept_neurons(intermediate: int, ratio: float, grain: int) -> int:
    """Neurons that are left where the curve of a layer ends, when about ``ratio`` of the model will go."""
    farthest = int(intermediate * (1 - min(0.95, _BEYOND * ratio)))
    return max(1, min(farthest, judged_neurons(intermediate, HALF, grain)))


def judged_neurons(intermediate: int, ratio: float, grain: int) -> int:
    """Neurons that are left where losses are measured: about ``ratio`` of them gone, in a legal grain."""
    return max(grain, round(intermediate * (1 - ratio) / grain) * grain)


@dataclass(frozen=True)
class LayerCurves:
    """Predicted error of one layer by the number of units removed: in nats, or in relative squared error of the stream.

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

    def scaled(self, part: Part, factor: float) -> "LayerCurves":
        """The same with one of the curves multiplied."""
        curve: list[float] = getattr(self, part)
        return replace(self, **{part: [value * factor for value in curve]})


def _at(curve: list[float], removed: int) -> float:
    last = len(curve) - 1
    if removed <= last:
        return curve[removed]
    return curve[last] * (removed / last) ** 2 if last else math.inf


@dataclass(frozen=True)
class Sensitivities:
    """Curves of all layers."""

    layers: list[LayerCurves]

    def error(self, before: Sequence[LayerShape], after: Sequence[LayerShape]) -> float:
        """Predicted error of a whole plan: errors of layers add up."""
        return sum(c.error(a, b) for c, a, b in zip(self.layers, before, after, strict=True))

    def scaled(self, part: Part, factor: float) -> "Sensitivities":
        """The same with the curves of a part multiplied in all layers."""
        return Sensitivities([curves.scaled(part, factor) for curves in self.layers])

    def factor(self, before: Sequence[LayerShape], after: Sequence[LayerShape], error: float) -> float:
        """What errors would be multiplied by to be ``error``, as was measured, at widths ``after``; 1 where none is."""
        predicted = self.error(before, after)
        return max(error, 0.0) / predicted if 0 < predicted < math.inf else 1.0

    def shortened(self, removed: Sequence[int]) -> "Sensitivities":
        """The same with at most ``removed[i]`` neurons of layer i gone: elimination goes on from where it stood."""
        return Sensitivities(
            [LayerCurves(c.neurons[: n + 1], c.heads) for c, n in zip(self.layers, removed, strict=True)]
        )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps([asdict(curves) for curves in self.layers]))

    @classmethod
    def load(cls, path: Path) -> "Sensitivities":
        """Read what :meth:`save` wrote."""
        return cls([LayerCurves(**curves) for curves in json.loads(path.read_text(encoding="utf-8"))])


def adaptive_widths(
    shape: ModelShape,
    curves: Sensitivities,
    wanted: int,
    widest: Sequence[LayerShape],
    pinned: Collection[int],
    rules: Rules,
    *,
    heads: bool = True,
) -> tuple[LayerShape, ...]:
    """Widths per layer that remove ``wanted`` parameters at the least predicted error.

    They begin with ``widest``, at which layers of ``pinned`` stay; without ``heads`` all head counts stay too.

    Head counts are coarse and neurons fine, so heads are settled first: for every number of head steps, the cheapest
    ones per parameter go and neurons make up the rest, cheapest first too. Marginal errors grow along a curve, which
    makes that greedy choice optimal up to the last step. The number of head steps with the least error wins.
    """
    layers = list(widest)
    search = _Search(shape, curves, rules, wanted, [i for i in range(len(layers)) if i not in pinned])
    best = search.fill(layers)
    for step in search.cheapest(search.fewer_heads, layers) if heads else ():
        layers[step.layer] = step.after
        if search.removed(layers) > wanted + search.slack:
            break
        best = min(best, search.fill(layers))
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


_Narrow = Callable[[int, LayerShape], LayerShape | None]
"""The next narrower widths of a layer by its index and widths, None at its end."""


@dataclass(frozen=True)
class _Search:
    """Greedy narrowing of the ``free`` layers until ``wanted`` parameters have gone."""

    shape: ModelShape
    curves: Sensitivities
    rules: Rules
    wanted: int
    free: list[int]

    def fewer_heads(self, index: int, now: LayerShape) -> LayerShape | None:
        options = head_options(self.shape, self.shape.layers[index], self.rules)
        return next((replace(now, heads=o[0], kv_heads=o[1]) for o in options if o[0] < now.heads), None)

    def fewer_neurons(self, index: int, now: LayerShape) -> LayerShape | None:
        multiple = self.rules.width_step(self.shape.layers[index].intermediate)
        narrower = (now.intermediate - 1) // multiple * multiple
        return replace(now, intermediate=narrower) if narrower >= multiple else None

    def cheapest(self, narrow: _Narrow, layers: list[LayerShape]) -> Iterator[_Step]:
        """Steps of all free layers in the order of their price; the caller need not apply them."""
        queue = [step for index in self.free if (step := self._step(narrow, index, layers[index]))]
        heapq.heapify(queue)
        while queue:
            step = heapq.heappop(queue)
            yield step
            following = self._step(narrow, step.layer, step.after)
            if following:
                heapq.heappush(queue, following)

    def _step(self, narrow: _Narrow, index: int, now: LayerShape) -> _Step | None:
        after = narrow(index, now)
        if after is None:
            return None
        curve, original = self.curves.layers[index], self.shape.layers[index]
        rise = curve.error(original, after) - curve.error(original, now)
        saved = self.shape.layer_parameters(now) - self.shape.layer_parameters(after)
        return _Step(max(rise, 0.0) / saved, index, after) if rise < math.inf else None

    def fill(self, layers: list[LayerShape]) -> _Filled:
        """Take neurons, cheapest first, until the budget is met as nearly as whole steps allow."""
        narrowed, removed = list(layers), self.removed(layers)
        for step in self.cheapest(self.fewer_neurons, layers):
            saved = self.shape.layer_parameters(narrowed[step.layer]) - self.shape.layer_parameters(step.after)
            if removed + saved / 2 > self.wanted:
                break
            narrowed[step.layer] = step.after
            removed += saved
        missing = max(0, round(abs(removed - self.wanted) - self.slack))
        return _Filled(missing, self.curves.error(self.shape.layers, tuple(narrowed)), tuple(narrowed))

    def removed(self, layers: list[LayerShape]) -> int:
        return self.shape.decoder_parameters - sum(map(self.shape.layer_parameters, layers))

    @property
    def slack(self) -> float:
        """Half the largest neuron step of any free layer, in parameters."""
        free = (self.shape.layers[i] for i in self.free)
        steps = (self.shape.neuron_cost(layer) * self.rules.width_step(layer.intermediate) for layer in free)
        return max(steps, default=0) / 2
