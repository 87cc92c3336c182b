"""From a ratio to the widths of every layer: which shapes are legal, and which of them meets the budget."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from llmfold.config import FoldConfig
from llmfold.errors import UsageError
from llmfold.models import LayerShape, ModelShape
from llmfold.planning.legal import Rules, head_options
from llmfold.planning.sensitivity import Sensitivities, adaptive_widths

_HALF = 0.5
_FALLBACK_PENALTY = 1.05
"""A plan that must be written as another family has to predict this much less error."""
_BISECTIONS = 40


@dataclass(frozen=True)
class _Budget:
    """The layers that the planner may shape, and how many parameters must go from them.

    Fractions of neurons (``mlp``) and heads (``attention``) are removed fractions of the free layers.
    """

    shape: ModelShape
    config: FoldConfig
    whole: ModelShape

    @cached_property
    def rules(self) -> Rules:
        return Rules(self.config.multiple_of, self.config.tensor_parallel, self.shape.grain)

    @cached_property
    def pinned(self) -> dict[int, LayerShape]:
        """Widths of the layers that the recipe names."""
        mlp, attention = self.config.mlp_ratio, self.config.attention_ratio
        return {
            i: self._narrow(
                self.shape.layers[i],
                override.mlp if override.mlp is not None else mlp,
                override.attention if override.attention is not None else attention,
            )
            for i, override in self.config.layers.items()
        }

    @cached_property
    def free(self) -> list[LayerShape]:
        """Widths, before the fold, of the layers that are not pinned."""
        return [layer for i, layer in enumerate(self.shape.layers) if i not in self.pinned]

    @cached_property
    def base(self) -> int:
        """Parameters that the ratio is of."""
        return self.whole.parameters if self.config.ratio_of == "model" else self.whole.decoder_parameters

    @cached_property
    def gone(self) -> int:
        """Parameters of whole blocks that have gone."""
        return self.whole.decoder_parameters - self.shape.decoder_parameters

    @cached_property
    def wanted(self) -> int:
        """Parameters that must go from the blocks that stay."""
        return round((self.config.ratio or 0.0) * self.base) - self.gone

    @cached_property
    def step(self) -> int:
        """Parameters of one MLP step taken in all free layers."""
        return sum(self.shape.neuron_cost(layer) * self.rules.width_step(layer.intermediate) for layer in self.free)

    @cached_property
    def neurons(self) -> int:
        """Parameters of all neurons of the free layers."""
        return sum(self.shape.neuron_cost(layer) * layer.intermediate for layer in self.free)

    def _narrow(self, layer: LayerShape, mlp: float | None, attention: float | None) -> LayerShape:
        """The legal widths nearest to what these fractions leave of a layer; equally near head counts keep more."""
        mlp, attention = mlp or 0.0, attention or 0.0
        options = head_options(self.shape, layer, self.rules)
        heads, kv_heads = min(options, key=lambda o: (abs(1 - o[0] / max(layer.heads, 1) - attention), -o[0]))
        return replace(
            layer, intermediate=self.rules.width(layer.intermediate, 1 - mlp), heads=heads, kv_heads=kv_heads
        )

    def layers(self, mlp: float | None, attention: float | None) -> tuple[LayerShape, ...]:
        """Widths of all layers when every free one loses these fractions."""
        layers = enumerate(self.shape.layers)
        return tuple(self.pinned.get(i) or self._narrow(layer, mlp, attention) for i, layer in layers)

    def removed(self, mlp: float, attention: float) -> int:
        return self.removed_by(self.layers(mlp, attention))

    def removed_by(self, layers: Sequence[LayerShape]) -> int:
        return self.shape.decoder_parameters - sum(map(self.shape.layer_parameters, layers))

    def error(self, curves: Sensitivities, attention: float) -> float:
        """Predicted error of a uniform plan, a little more where it cannot keep the model's own class.

        It is that of the widths before they are made legal, which meet the budget exactly: of two splits, one whose
        legal widths remove less would else look better for that alone.
        """
        kept = 1 - self.need(attention)
        layers = [
            layer if i in self.pinned else replace(layer, intermediate=round(self.shape.layers[i].intermediate * kept))
            for i, layer in enumerate(self.layers(0.0, attention))
        ]
        family = self.shape.architecture
        native = not family.registered or family.allows_heads(self.shape.hidden, *(layer.heads for layer in layers))
        return curves.error(self.shape.layers, layers) * (1.0 if native else _FALLBACK_PENALTY)

    def attention_fractions(self) -> list[float]:
        """Fractions of heads that legal head counts of the free layers remove, ascending."""
        options = ((layer, head_options(self.shape, layer, self.rules)) for layer in self.free)
        return sorted(
            {1 - heads / max(layer.heads, 1) for layer, counts in options for heads, _ in counts if layer.heads}
        ) or [0.0]

    def mlp_fraction(self, attention: float) -> float:
        """Fraction of the free layers' neurons that must go once ``attention`` of the heads has gone."""
        missing = self.wanted - self.removed(0.0, attention)
        return missing / self.neurons if self.neurons else 0.0

    def need(self, attention: float) -> float:
        """:meth:`mlp_fraction` within [0, 1]."""
        return min(max(self.mlp_fraction(attention), 0.0), 1.0)

    def nearest(self, attention: float) -> float:
        """Fraction of neurons in [0, 1] whose removal comes nearest to the budget once widths are legal."""
        need = self.need(attention)
        if abs(self.removed(need, attention) - self.wanted) <= self.step / 2:
            return need
        low, high = 0.0, 1.0  # layers of different widths are not rounded alike
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.removed(middle, attention) >= self.wanted else (middle, high)
        return min((high, low), key=lambda m: abs(self.removed(m, attention) - self.wanted))

    def best_attention(self, fractions: list[float], curves: Sensitivities | None) -> float:
        """The fraction of heads that predicts least error; without curves the least that leaves half of the MLPs."""
        needs = [(a, self.mlp_fraction(a)) for a in fractions]
        slack = self.step / 2 / max(self.neurons, 1)
        possible = [(a, m) for a, m in needs if m >= -slack] or needs[:1]
        best = next((a for a, m in possible if m <= max(_HALF, a)), possible[-1][0])
        if curves is None:
            return best
        plans = [(a, self.nearest(a)) for a, _ in possible]
        met = [(a, m) for a, m in plans if abs(self.removed(m, a) - self.wanted) <= self.step / 2 + 1]
        return min((a for a, _ in met), key=lambda a: self.error(curves, a), default=best)


def plan_widths(
    shape: ModelShape, config: FoldConfig, curves: Sensitivities | None = None, whole: ModelShape | None = None
) -> tuple[LayerShape, ...]:
    """Widths of every layer after folding, all of which ``tensor_parallel`` devices can share.

    Without measured curves the MLPs give first; heads go when the MLPs alone would lose more than half, until both lose
    alike. With curves the split between MLPs and heads is the one of least predicted error, and so are the widths of
    single layers under ``allocation="adaptive"``. Layers that the recipe names are pinned to what it says. The
    ratio is of the ``whole`` model, of which ``shape`` is what is left where blocks have gone.

    Raises:
        UsageError: layers that do not exist, a ratio that cannot be met (naming the largest that can), widths that
            cannot be shared, or options that contradict each other.
    """
    mlp, attention = config.mlp_ratio, config.attention_ratio
    absent = [i for i in config.layers if i >= len(shape.layers)]
    if absent:
        raise UsageError(f"layer {absent[0]} of the recipe does not exist; the model has {len(shape.layers)} layers")
    if config.ratio is not None and mlp is not None and attention is not None:
        raise UsageError("--ratio, --mlp-ratio and --attention-ratio say the same thing twice; give at most two")
    budget = _Budget(shape, config, whole or shape)
    if config.ratio is None:
        widths = budget.layers(mlp, attention)
    elif config.ratio == 0 and not budget.pinned and not mlp and not attention and not budget.gone:
        widths = shape.layers
    else:
        widths = _meet(budget, mlp, attention, curves)
    budget.rules.check(shape.layers, widths)
    _check_alike(shape, widths)
    return widths


def _check_alike(shape: ModelShape, widths: tuple[LayerShape, ...]) -> None:
    """Raise UsageError where layers of one kind would differ in width, and the model's config has one width for all."""
    if shape.architecture.registered:
        return
    for before in set(shape.layers):
        found = {after for layer, after in zip(shape.layers, widths, strict=True) if layer == before}
        if len(found) > 1:
            raise UsageError(
                f"{shape.architecture.causal_lm} has one width for all its layers of a kind: leave layers out of the "
                "recipe"
            )


def _meet(
    budget: _Budget, mlp: float | None, attention: float | None, curves: Sensitivities | None
) -> tuple[LayerShape, ...]:
    fractions = budget.attention_fractions() if attention is None else [attention]
    if mlp is not None:
        best = min(fractions, key=lambda a: (abs(budget.removed(mlp, a) - budget.wanted), a))
        layers = budget.layers(mlp, best)
    elif curves is not None and budget.config.allocation == "adaptive":
        widest = budget.layers(0.0, attention)
        layers = adaptive_widths(
            budget.shape, curves, budget.wanted, widest, budget.pinned, budget.rules, heads=attention is None
        )
    else:
        best = budget.best_attention(fractions, curves)
        layers = budget.layers(budget.nearest(best), best)
    _check_met(budget, layers, mlp, fractions)
    return layers


def _check_met(budget: _Budget, layers: tuple[LayerShape, ...], mlp: float | None, fractions: list[float]) -> None:
    """Hold the promise on the ratio: within half an MLP step, or half a head step where the MLPs are fixed."""
    wanted, base, gone = budget.wanted, budget.base, budget.gone
    steps = [budget.removed(mlp, a) for a in fractions] if mlp is not None else []
    step = max((b - a for a, b in itertools.pairwise(steps)), default=budget.step)
    if abs(budget.removed_by(layers) - wanted) <= step / 2 + 1:
        return
    reached = {budget.removed(m, a) for a in fractions for m in ((0.0, 1.0) if mlp is None else (mlp,))}
    lower, upper = [x for x in reached if x <= wanted], [x for x in reached if x > wanted]
    below = [_name(max(lower) + gone, base, step, math.floor)] if lower else []
    above = [_name(min(upper) + gone, base, step, math.ceil)] if upper else []
    word = "nearest that can" if below and above else "largest that can" if below else "smallest that can"
    verb = "are" if below and above else "is"
    raise UsageError(
        f"--ratio {budget.config.ratio:g} cannot be met: the {word} with these options {verb} "
        f"{' and '.join(below + above)} of the {budget.config.ratio_of}"
    )


def _name(removed: int, base: int, step: float, rounded: Callable[[float], int]) -> str:
    """A ratio that is really met by removing this many parameters, in as few decimals as that takes."""
    for digits in range(4, 16):
        ratio = rounded(removed / base * 10**digits) / 10**digits
        if abs(round(ratio * base) - removed) <= step / 2:
            break
    return f"{ratio:.{digits}f}".rstrip("0").rstrip(".")
