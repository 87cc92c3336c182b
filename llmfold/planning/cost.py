"""What a fold costs: work by stage, memory and disk. Methods say what they do, planning what this machine takes for it.

The unit that times are stated in is one forward pass of the dense model over the tokens that are measured on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from llmfold.models import LayerShape, ModelShape


@dataclass(frozen=True)
class Stage:
    """Work of one stage, under the name that a run's report gives it.

    Attributes:
        name: of the stage.
        large: floating-point operations of large float32 products.
        skinny: those of products of a few dozen rows with whole weight matrices, in the dtype of forward passes.
        double: those of float64 factorisations.
        memory: bytes read and written in memory where that bounds the stage rather than arithmetic.
        disk: bytes read from the disk or written to it.
    """

    name: str
    large: float = 0.0
    skinny: float = 0.0
    double: float = 0.0
    memory: float = 0.0
    disk: float = 0.0

    def __add__(self, other: "Stage") -> "Stage":
        """Add the work of another stage; the name is that of this one."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "name"}
        return replace(self, **sums)


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second; attributes as of :class:`Stage`."""

    large: float
    skinny: float
    double: float
    memory: float
    disk: float

    def seconds(self, stage: Stage) -> float:
        """How long a stage takes; small products wait for arithmetic or for memory, whichever is slower."""
        arithmetic = stage.large / self.large + stage.double / self.double
        return arithmetic + max(stage.skinny / self.skinny, stage.memory / self.memory) + stage.disk / self.disk


@dataclass(frozen=True)
class Cost:
    """Cost of a fold, or of a part of it.

    Attributes:
        stages: in the order they begin, each name once.
        work_area: bytes of the host's memory that a process takes for a layer, beside the layer's stored tensors.
        states: bytes that wait on disk while the fold runs.
        sampling: bytes of the host's memory that all processes take together while they sample.
        tokens, length: rows that are measured on, and the length of their sequences; 0 where none are.
    """

    stages: tuple[Stage, ...] = ()
    work_area: int = 0
    states: int = 0
    sampling: int = 0
    tokens: int = 0
    length: int = 0

    @classmethod
    def of(cls, stages: Iterable[Stage], **others: int) -> "Cost":
        """Sum stages of one name; ``others`` are the other attributes."""
        sums: dict[str, Stage] = {}
        for stage in stages:
            sums[stage.name] = sums[stage.name] + stage if stage.name in sums else stage
        return cls(tuple(sums.values()), **others)

    def stage(self, name: str) -> Stage:
        """The stage of a name; without work where there is none."""
        return next((stage for stage in self.stages if stage.name == name), Stage(name))


def layer_flops(shape: ModelShape, layer: LayerShape, tokens: float, length: int) -> float:
    """Floating-point operations of a decoder layer over sequences of ``length`` tokens, attention being causal."""
    return 2.0 * tokens * shape.layer_parameters(layer) + attention_flops(shape, layer, tokens, length)


def attention_flops(shape: ModelShape, layer: LayerShape, tokens: float, length: int) -> float:
    """Those of scores and weighted values; half of all pairs are attended."""
    return 2.0 * tokens * length * layer.heads * shape.head_dim


def decoder_flops(shape: ModelShape, tokens: float, length: int) -> float:
    """Those of all decoder layers."""
    return sum(layer_flops(shape, layer, tokens, length) for layer in shape.layers)


def head_flops(shape: ModelShape, tokens: float) -> float:
    """Those of the output embedding."""
    return 2.0 * tokens * shape.vocabulary * shape.hidden


def forward_flops(shape: ModelShape, tokens: float, length: int) -> float:
    """Those of the unit: one forward pass of the whole model."""
    return decoder_flops(shape, tokens, length) + head_flops(shape, tokens)


def passes(seconds: Mapping[str, float], forward_pass: float | None) -> dict[str, float]:
    """Seconds by stage as multiples of the unit; empty without one."""
    return {name: spent / forward_pass for name, spent in seconds.items()} if forward_pass else {}
