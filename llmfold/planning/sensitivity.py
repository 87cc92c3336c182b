"""Measured sensitivities: what each layer would lose by each width, and the widths that hurt least."""

import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfold.architectures import LayerShape, ModelShape
from llmfold.planning.legal import head_options, width_multiple


@dataclass(frozen=True)
class LayerCurves:
    """Predicted error of one layer by the number of units removed, in relative squared error of the residual stream.

    Attributes:
        neurons: ``neurons[n]`` with n neurons removed, n from 0; where it ends nothing was measured.
        heads: ``heads[h]`` with h head units removed (KV groups, or query heads under MQA), h from 0.
    """

    neurons: list[float]
    heads: list[float]

    def error(self, before: LayerShape, after: LayerShape) -> float:
        """Predicted error of narrowing from ``before`` to ``after``; infinite beyond what was measured."""
        by_group = before.kv_heads > 1
        heads = before.kv_heads - after.kv_heads if by_group else before.heads - after.heads
        return _at(self.neurons, before.intermediate - after.intermediate) + _at(self.heads, heads)


def _at(curve: list[float], removed: int) -> float:
    return curve[removed] if removed < len(curve) else float("inf")


@dataclass(frozen=True)
class Sensitivities:
    """Curves of all layers."""

    layers: list[LayerCurves]

    def error(self, before: tuple[LayerShape, ...], after: tuple[LayerShape, ...]) -> float:
        """Predicted error of a whole plan: errors of layers add up."""
        return sum(c.error(a, b) for c, a, b in zip(self.layers, before, after, strict=True))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        content = [{"neurons": c.neurons, "heads": c.heads} for c in self.layers]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Sensitivities":
        """Read what :meth:`save` wrote."""
        content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return cls([LayerCurves(c["neurons"], c["heads"]) for c in content])


@dataclass(order=True)
class _Step:
    """Narrowing one part of one layer, ranked by predicted error per parameter removed."""

    price: float
    layer: int
    part: str
    after: LayerShape


def adaptive_widths(
    shape: ModelShape, curves: Sensitivities, wanted: int, pinned: dict[int, LayerShape], multiple_of: int | None
) -> tuple[LayerShape, ...]:
    """Widths per layer that remove ``wanted`` parameters at little predicted error: the cheapest step first.

    A step is one multiple of neurons or one legal head count less in one layer. Marginal errors grow along a curve, so
    taking the cheapest per parameter is the greedy solution of a convex problem. Steps that would overshoot by more
    than half a neuron step are passed over.
    """
    layers = [pinned.get(i, layer) for i, layer in enumerate(shape.layers)]
    removed = shape.decoder_parameters - sum(map(shape.layer_parameters, layers))
    queue: list[_Step] = []
    for index in range(len(layers)):
        if index not in pinned:
            for step in _steps(shape, curves, index, layers[index], multiple_of):
                heapq.heappush(queue, step)
    while queue and removed < wanted:
        step = heapq.heappop(queue)
        now = layers[step.layer]
        after = _merge(now, step)
        saved = shape.layer_parameters(now) - shape.layer_parameters(after)
        slack = shape.neuron_parameters * width_multiple(now.intermediate, multiple_of) / 2
        if saved <= 0 or removed + saved - wanted > slack:
            continue
        layers[step.layer] = after
        removed += saved
        for following in _steps(shape, curves, step.layer, after, multiple_of):
            if following.part == step.part:
                heapq.heappush(queue, following)
    return tuple(layers)


def _merge(now: LayerShape, step: _Step) -> LayerShape:
    if step.part == "mlp":
        return LayerShape(step.after.intermediate, now.heads, now.kv_heads)
    return LayerShape(now.intermediate, step.after.heads, step.after.kv_heads)


def _steps(
    shape: ModelShape, curves: Sensitivities, index: int, now: LayerShape, multiple_of: int | None
) -> list[_Step]:
    original, curve = shape.layers[index], curves.layers[index]
    multiple = width_multiple(original.intermediate, multiple_of)
    narrower = (now.intermediate - 1) // multiple * multiple
    found = []
    if narrower >= multiple:
        found.append(("mlp", LayerShape(narrower, now.heads, now.kv_heads)))
    fewer = [o for o in head_options(shape, original) if o[0] < now.heads]
    if fewer:
        found.append(("heads", LayerShape(now.intermediate, *fewer[0])))
    steps = []
    for part, after in found:
        rise = curve.error(original, after) - curve.error(original, now)
        saved = shape.layer_parameters(now) - shape.layer_parameters(after)
        if rise < float("inf"):
            steps.append(_Step(max(rise, 0.0) / saved, index, part, after))
    return steps
