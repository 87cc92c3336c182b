"""Legal shapes: which MLP widths and head counts a stock config can express."""

import math
from dataclasses import dataclass

from llmfold.errors import UsageError
from llmfold.models import LayerShape, ModelShape

WIDE, WIDE_MULTIPLE = 1024, 128


@dataclass(frozen=True)
class Rules:
    """What widths must divide by.

    Attributes:
        multiple_of: MLP widths are multiples of this; None: 128 where the layer is 1,024 wide or more, else 1.
        tensor_parallel: MLP widths, query heads and KV heads are multiples of this, so that so many devices share them
            evenly; KV heads that were fewer to begin with, which engines repeat, divide it instead.
        grain: MLP widths are multiples of this, since the model's class runs on no others.
    """

    multiple_of: int | None = None
    tensor_parallel: int = 1
    grain: int = 1

    def width_step(self, intermediate: int) -> int:
        """Granularity of the MLP width of a layer that is ``intermediate`` wide."""
        step = math.lcm(width_multiple(intermediate, self.multiple_of), self.tensor_parallel, self.grain)
        return max(1, min(step, intermediate))

    def width(self, intermediate: int, kept: float) -> int:
        """Legal width nearest to ``kept * intermediate``, see :func:`snap`."""
        if not intermediate:
            return 0
        nearest = snap(intermediate, kept, step := self.width_step(intermediate))
        return nearest if nearest % self.tensor_parallel == 0 else max(step, intermediate // step * step)

    def allows_heads(self, layer: LayerShape, heads: int, kv_heads: int) -> bool:
        """Whether ``heads`` query heads and ``kv_heads`` KV heads of what was ``layer`` can be shared evenly."""
        n = self.tensor_parallel
        return heads % n == 0 and (kv_heads % n == 0 or (layer.kv_heads < n and n % kv_heads == 0))

    def check(self, before: tuple[LayerShape, ...], after: tuple[LayerShape, ...]) -> None:
        """Raise UsageError where a layer cannot be shared evenly."""
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            if b.intermediate % self.tensor_parallel or not self.allows_heads(a, b.heads, b.kv_heads):
                raise UsageError(
                    f"--tensor-parallel {self.tensor_parallel} does not divide layer {i} of this fold: "
                    f"{b.intermediate} neurons, {b.heads} query heads, {b.kv_heads} KV heads; choose another number or "
                    "another ratio"
                )


def width_multiple(intermediate: int, requested: int | None) -> int:
    """Granularity of an MLP width: engines are faster on multiples of 128, narrow layers are kept exact."""
    return min(requested or (WIDE_MULTIPLE if intermediate >= WIDE else 1), intermediate)


def snap(intermediate: int, kept: float, multiple: int) -> int:
    """Legal width nearest to ``kept * intermediate``: a multiple of ``multiple``, at least one of it, at most all."""
    target = kept * intermediate
    below = int(target // multiple) * multiple
    legal = {multiple, max(below, multiple), below + multiple, intermediate}
    return min((w for w in legal if w <= intermediate), key=lambda w: (abs(w - target), -w))


def head_options(shape: ModelShape, layer: LayerShape, rules: Rules = Rules()) -> list[tuple[int, int]]:
    """Legal (query heads, KV heads) of a layer, widest first; all of them where the rules allow none.

    Whole KV groups go; where a single KV head serves all query heads (MQA), query heads go instead. A family whose
    config wants the head count to divide the hidden size is restricted to such counts, unless another can hold it.
    """
    if not shape.folds_heads(layer):
        return [(layer.heads, layer.kv_heads)]
    narrower = (layer.with_units(layer.intermediate, units) for units in range(layer.head_units, 0, -1))
    options = [(widths.heads, widths.kv_heads) for widths in narrower]
    legal = [o for o in options if o[0] == layer.heads or heads_are_legal(shape, o[0])]
    return [o for o in legal if rules.allows_heads(layer, *o)] or legal[:1]


def heads_are_legal(shape: ModelShape, heads: int) -> bool:
    """Whether some stock config can express ``heads`` query heads for this model."""
    family = shape.architecture
    if not family.registered:
        return True
    return family.allows_heads(shape.hidden, heads) or (family.fallback is not None and not shape.biased)
