"""The plan of a fold: shapes before and after, and every tensor that will be written."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmfold.checkpoint import TensorInfo, TensorSpec
from llmfold.config import FoldConfig
from llmfold.models import ARCHITECTURES, Architecture, ModelShape
from llmfold.planning.sensitivity import Sensitivities
from llmfold.planning.widths import plan_widths


@dataclass(frozen=True)
class FoldPlan:
    """What a fold will do, before it does it.

    Attributes:
        before, after: shapes of the model that is narrowed and of the model written.
        tensors: every tensor that will be written, in order.
        written_as: the family whose stock class loads the result.
        parameters_before, parameters_after: all parameters, tied embeddings once.
        bytes_before, bytes_after: tensor bytes.
        whole: shape of the model read, where blocks of it go before the others are narrowed.
        removed: numbers of these in the model read.
    """

    config: FoldConfig
    before: ModelShape
    after: ModelShape
    tensors: tuple[TensorSpec, ...]
    written_as: Architecture
    bytes_before: int
    whole: ModelShape
    removed: tuple[int, ...] = ()

    @property
    def parameters_before(self) -> int:
        """Parameters of the model read."""
        return self.whole.parameters

    @property
    def parameters_after(self) -> int:
        """Parameters of the model written."""
        return self.after.parameters

    @property
    def bytes_after(self) -> int:
        """Tensor bytes of the model written."""
        return sum(spec.nbytes for spec in self.tensors)

    @property
    def ratio(self) -> float:
        """Fraction of all parameters that goes."""
        return 1 - self.parameters_after / self.parameters_before

    @property
    def decoder_ratio(self) -> float:
        """Fraction of the decoder layers' parameters that goes."""
        return 1 - self.after.decoder_parameters / self.whole.decoder_parameters

    @property
    def needs_remote_code(self) -> bool:
        """Whether no stock config holds the widths, so that the result carries its own modelling file."""
        if not self.after.architecture.registered:  # its config is known to hold whatever is planned
            return False
        heads = (layer.heads for layer in self.after.layers)
        return not self.after.uniform or not self.written_as.allows_heads(self.after.hidden, *heads)

    @property
    def folded_layers(self) -> list[int]:
        """Layers whose widths change."""
        return [i for i, (a, b) in enumerate(zip(self.before.layers, self.after.layers, strict=True)) if a != b]

    def to_dict(self) -> dict[str, Any]:
        """The plan as report.json holds it: sizes before and after, the family written, widths of every layer."""
        return {
            "parameters": {"before": self.parameters_before, "after": self.parameters_after},
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "ratio": self.ratio,
            "decoder_ratio": self.decoder_ratio,
            "written_as": self.written_as.causal_lm,
            "needs_trust_remote_code": self.needs_remote_code,
            **({"couplings": self.before.inferred} if self.before.inferred else {}),
            **({"blocks": len(self.whole.layers), "blocks_removed": list(self.removed)} if self.removed else {}),
            "layers": [
                {"before": a.widths(), "after": b.widths()}
                for a, b in zip(self.before.layers, self.after.layers, strict=True)
            ],
        }


@dataclass(frozen=True)
class Removal:
    """Whole blocks that go before the others are narrowed.

    Attributes:
        shape, nbytes: of the model with them.
        blocks: their numbers in it.
    """

    shape: ModelShape
    nbytes: int
    blocks: tuple[int, ...]


def make_plan(
    shape: ModelShape,
    tensors: Mapping[str, TensorInfo],
    config: FoldConfig,
    curves: Sensitivities | None = None,
    removal: Removal | None = None,
) -> FoldPlan:
    """Plan the fold of a checkpoint whose tensors have been validated against ``shape``, by measured curves if given.

    Args:
        shape: of the checkpoint without blocks that go as a whole.
        tensors: of it.
        config: options.
        curves: what was measured.
        removal: those blocks.

    Raises:
        UsageError: the ratio or the recipe cannot be met; see :func:`plan_widths`.
    """
    removal = removal or Removal(shape, sum(t.nbytes for t in tensors.values()), ())
    after = dataclasses.replace(shape, layers=plan_widths(shape, config, curves, removal.shape))
    new_shapes = after.layer_stored()
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    specs = (TensorSpec(t.name, dtype or t.dtype, new_shapes.get(t.name, t.shape)) for t in tensors.values())
    written_as, whole = family_of(after), removal.shape
    return FoldPlan(config, shape, after, tuple(specs), written_as, removal.nbytes, whole, removal.blocks)


def family_of(after: ModelShape) -> Architecture:
    """The family whose stock config takes these widths: the own one, or its fallback if that refuses a head count."""
    family = after.architecture
    if not family.registered or family.allows_heads(after.hidden, *(layer.heads for layer in after.layers)):
        return family
    assert family.fallback is not None
    return ARCHITECTURES[family.fallback]
