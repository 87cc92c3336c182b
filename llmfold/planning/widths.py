"""From a ratio to the widths of every layer: which shapes are legal, and which of them meets the budget."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping

from llmfold.config import FoldConfig, LayerOverride
from llmfold.errors import UsageError
from llmfold.models import LayerShape, ModelShape
from llmfold.planning.legal import Rules, head_options
from llmfold.planning.sensitivity import Sensitivities, adaptive_widths

HALF = 0.5
FOREIGN = 1.05
"""A plan that must be written as another family has to predict this much less error."""
_BISECTIONS = 40


def rules_of(config: FoldConfig) -> Rules:
    """What the options say of legal widths."""
    return Rules(config.multiple_of, config.tensor_parallel)


def drop_heads(shape: ModelShape, layer: LayerShape, fraction: float, rules: Rules) -> tuple[int, int]:
    """Legal (query heads, KV heads) whose removed fraction is nearest to ``fraction``; ties keep more."""
    return min(head_options(shape, layer, rules), key=lambda o: (abs(1 - o[0] / layer.heads - fraction), -o[0]))


@dataclasses.dataclass(frozen=True)
class _Budget:
    """The layers that the planner may shape, and how many parameters must go from them."""

    shape: ModelShape
    config: FoldConfig
    pinned: Mapping[int, LayerShape]

    def layers(self, mlp: float, attention: float) -> tuple[LayerShape, ...]:
        """Widths of all layers when every free one loses these fractions."""
        return tuple(
            self.pinned.get(i) or fold_layer_shape(self.shape, layer, self.config, LayerOverride(mlp, attention))
            for i, layer in enumerate(self.shape.layers)
        )

    def removed(self, mlp: float, attention: float) -> int:
        after = sum(map(self.shape.layer_parameters, self.layers(mlp, attention)))
        return self.shape.decoder_parameters - after

    def burden(self, curves: Sensitivities, attention: float, mlp: float) -> float:
        """Predicted error of a uniform plan, a little more where it cannot keep the model's own class."""
        layers = self.layers(mlp, attention)
        native = not self.shape.architecture.heads_divide_hidden or not any(self.shape.hidden % a.heads for a in layers)
        return curves.error(self.shape.layers, layers) * (1.0 if native else FOREIGN)

    @property
    def free_neurons(self) -> int:
        return sum(layer.intermediate for i, layer in enumerate(self.shape.layers) if i not in self.pinned)

    @property
    def step(self) -> int:
        """Parameters of one MLP step taken in all free layers."""
        return self.shape.neuron_parameters * sum(
            rules_of(self.config).width_step(layer.intermediate)
            for i, layer in enumerate(self.shape.layers)
            if i not in self.pinned
        )

    def mlp_fraction(self, wanted: int, attention: float) -> float:
        """Fraction of the free layers' neurons that must go once ``attention`` of the heads has gone."""
        missing = wanted - self.removed(0.0, attention)
        return missing / (self.shape.neuron_parameters * self.free_neurons) if self.free_neurons else 0.0

    def nearest(self, wanted: int, attention: float) -> float:
        """Fraction of neurons in [0, 1] whose removal comes nearest to ``wanted`` once widths are legal."""
        need = min(max(self.mlp_fraction(wanted, attention), 0.0), 1.0)
        if abs(self.removed(need, attention) - wanted) <= self.step / 2:
            return need
        low, high = 0.0, 1.0  # layers of different widths are not rounded alike
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.removed(middle, attention) >= wanted else (middle, high)
        return min((high, low), key=lambda m: abs(self.removed(m, attention) - wanted))


def fold_layer_shape(shape: ModelShape, layer: LayerShape, config: FoldConfig, fractions: LayerOverride) -> LayerShape:
    """Widths of one layer after removing these fractions of its neurons and heads."""
    rules = rules_of(config)
    heads, kv_heads = drop_heads(shape, layer, fractions.attention or 0.0, rules)
    return LayerShape(rules.width(layer.intermediate, 1 - (fractions.mlp or 0.0)), heads, kv_heads)


def plan_widths(shape: ModelShape, config: FoldConfig, curves: Sensitivities | None = None) -> tuple[LayerShape, ...]:
    """Widths of every layer after folding, all of which ``tensor_parallel`` devices can share; see :func:`_widths`.

    Raises:
        UsageError: layers that do not exist, a ratio that cannot be met (naming the largest that can), widths that
            cannot be shared, or options that contradict each other.
    """
    widths = _widths(shape, config, curves)
    rules_of(config).check(shape.layers, widths)
    return widths


def _widths(shape: ModelShape, config: FoldConfig, curves: Sensitivities | None) -> tuple[LayerShape, ...]:
    """Widths of every layer after folding.

    Without measured curves the MLPs give first; heads go when the MLPs alone would lose more than half, until both lose
    alike. With curves the split between MLPs and heads is the one of least predicted error, and so are the widths of
    single layers under ``allocation="adaptive"``. Layers that the recipe names are pinned to what it says.
    """
    absent = [i for i in config.layers if i >= len(shape.layers)]
    if absent:
        raise UsageError(f"layer {absent[0]} of the recipe does not exist; the model has {len(shape.layers)} layers")
    if config.ratio is not None and config.mlp_ratio is not None and config.attention_ratio is not None:
        raise UsageError("--ratio, --mlp-ratio and --attention-ratio say the same thing twice; give at most two")
    mlp, attention = config.mlp_ratio, config.attention_ratio
    pinned = {
        i: fold_layer_shape(
            shape,
            shape.layers[i],
            config,
            LayerOverride(o.mlp if o.mlp is not None else mlp, o.attention if o.attention is not None else attention),
        )
        for i, o in config.layers.items()
    }
    budget = _Budget(shape, config, pinned)
    if config.ratio is None:
        return budget.layers(mlp or 0.0, attention or 0.0)
    if config.ratio == 0 and not pinned and not mlp and not attention:
        return shape.layers
    return _meet(budget, config.ratio, mlp, attention, curves)


def _meet(
    budget: _Budget, ratio: float, mlp: float | None, attention: float | None, curves: Sensitivities | None
) -> tuple[LayerShape, ...]:
    shape, rules = budget.shape, rules_of(budget.config)
    base = shape.parameters if budget.config.ratio_of == "model" else shape.decoder_parameters
    wanted = round(ratio * base)
    free = [layer for i, layer in enumerate(shape.layers) if i not in budget.pinned]
    fractions = sorted({1 - o[0] / layer.heads for layer in free for o in head_options(shape, layer, rules)}) or [0.0]
    if attention is not None:
        fractions = [attention]
    if mlp is not None:
        best = min(fractions, key=lambda a: (abs(budget.removed(mlp, a) - wanted), a))
        layers = budget.layers(mlp, best)
    elif curves is not None and attention is None and budget.config.allocation == "adaptive":
        layers = adaptive_widths(shape, curves, wanted, budget.pinned, rules)
    else:
        needs = [(a, budget.mlp_fraction(wanted, a)) for a in fractions]
        slack = budget.step / 2 / (shape.neuron_parameters * max(budget.free_neurons, 1))
        possible = [(a, m) for a, m in needs if m >= -slack] or needs[:1]
        best = next((a for a, m in possible if m <= max(HALF, a)), possible[-1][0])
        if curves is not None:
            plans = [(a, budget.nearest(wanted, a)) for a, _ in possible]
            met = [(a, m) for a, m in plans if abs(budget.removed(m, a) - wanted) <= budget.step / 2 + 1]
            best = min(met, key=lambda plan: budget.burden(curves, *plan), default=(best, 0.0))[0]
        layers = budget.layers(budget.nearest(wanted, best), best)
    _check_met(budget, layers, wanted, base, ratio, mlp, fractions)
    return layers


def _check_met(
    budget: _Budget,
    layers: tuple[LayerShape, ...],
    wanted: int,
    base: int,
    ratio: float,
    mlp: float | None,
    fractions: list[float],
) -> None:
    """Hold the promise on the ratio: within half an MLP step, or half a head step where the MLPs are fixed."""
    shape = budget.shape
    removed = shape.decoder_parameters - sum(map(shape.layer_parameters, layers))
    steps = [budget.removed(mlp, a) for a in fractions] if mlp is not None else []
    step = max((b - a for a, b in itertools.pairwise(steps)), default=budget.step)
    if abs(removed - wanted) <= step / 2 + 1:
        return
    reached = {budget.removed(m, a) for a in fractions for m in ((0.0, 1.0) if mlp is None else (mlp,))}
    below = [_name(max(x for x in reached if x <= wanted), base, step, math.floor)] if min(reached) <= wanted else []
    above = [_name(min(x for x in reached if x > wanted), base, step, math.ceil)] if max(reached) > wanted else []
    word = "nearest that can" if below and above else "largest that can" if below else "smallest that can"
    verb = "are" if below and above else "is"
    raise UsageError(
        f"--ratio {ratio:g} cannot be met: the {word} with these options {verb} {' and '.join(below + above)} "
        f"of the {budget.config.ratio_of}"
    )


def _name(removed: int, base: int, step: float, rounded: Callable[[float], int]) -> str:
    """A ratio that is really met by removing this many parameters, in as few decimals as that takes."""
    for digits in range(4, 16):
        ratio = rounded(removed / base * 10**digits) / 10**digits
        if abs(round(ratio * base) - removed) <= step / 2:
            break
    return f"{ratio:.{digits}f}".rstrip("0").rstrip(".")
