"""How much a fold measures: one knob over tokens, the length of their sequences, and refinement, by the model alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfold.models import ModelShape


@dataclass(frozen=True)
class Size:
    """Tokens to measure on, and of a sequence."""

    tokens: int
    length: int


@dataclass(frozen=True)
class Effort:
    """What a name stands for.

    Attributes:
        tokens: to measure on, at least.
        length: tokens of a sequence, or as many as the model has positions.
        refine: gradient steps on every MLP.
        most: tokens where blocks are wide enough to need them, at ``_FILL`` for each unit of the widest.
        tokens_per_unit: at least so many tokens for each unit, whatever ``most`` says.
        wide: tokens and length instead where an MLP has more than ``WIDE_MLP`` neurons.
    """

    tokens: int
    length: int
    refine: int
    most: int = 0
    tokens_per_unit: int = 0
    wide: Size | None = None

    def tokens_for(self, shape: "ModelShape") -> int:
        """Tokens to measure a model on, at least."""
        widest = widest_consumer(shape)
        least = self._size(_widest(shape)).tokens
        return max(least, min(self.most, _FILL * widest), self.tokens_per_unit * widest)

    def length_for(self, shape: "ModelShape") -> int:
        """Tokens of a sequence."""
        return min(self._size(_widest(shape)).length, shape.positions)

    def _size(self, neurons: int) -> Size:
        return Size(self.tokens, self.length) if self.wide is None or neurons <= WIDE_MLP else self.wide


def widest_consumer(shape: "ModelShape") -> int:
    """Features of the widest consumer: neurons that an MLP reads back, or channels of heads."""
    return max(_widest(shape), *(layer.heads * shape.head_dim for layer in shape.layers))


def _widest(shape: "ModelShape") -> int:
    return max(layer.intermediate for layer in shape.layers)


WIDE_MLP = 4096
_FILL = 64
EFFORTS = {
    "quick": Effort(tokens=16_384, length=256, refine=0, wide=Size(tokens=8_192, length=128)),
    "normal": Effort(tokens=32_768, length=512, refine=200, most=57_344, tokens_per_unit=4),
    "best": Effort(tokens=131_072, length=512, refine=1_600, tokens_per_unit=4),
}
DEFAULT_EFFORT = "normal"
