"""Whole blocks that go: chosen once, before anything is narrowed, by what predictions lose without each of them."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from llmfold.checkpoint import Checkpoint, TensorInfo
from llmfold.config import FoldConfig
from llmfold.data.tokens import share_tokens
from llmfold.errors import UsageError
from llmfold.jsonfile import read_object
from llmfold.methods.base import FoldContext
from llmfold.methods.method import Notify, method_of
from llmfold.models import ModelShape
from llmfold.models.shallower import ShallowCheckpoint, kept_blocks
from llmfold.models.tying import running_shape
from llmfold.planning import Removal, Sensitivities, plan_widths
from llmfold.planning.depth import Losses, best_blocks, cheapest_blocks
from llmfold.runtime.distributed import Ranks
from llmfold.runtime.storage import replace_json

if TYPE_CHECKING:
    from llmfold.methods.reconstruction.blocks import Blocks
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models

DEPTH_FILE = "llmfold_depth.json"


@dataclass(frozen=True)
class Depth:
    """What was chosen.

    Attributes:
        removed: numbers of the blocks that go, ascending.
        losses: by block, KL divergence from the dense model in nats a token without it.
        facts: what they were measured on, for the report.
    """

    removed: tuple[int, ...]
    losses: Losses
    facts: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write into a work folder."""
        replace_json(folder / DEPTH_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Depth | None":
        """Read from a work folder; None where nothing was chosen yet."""
        if not (folder / DEPTH_FILE).exists():
            return None
        found = read_object(folder / DEPTH_FILE, unique_keys=True)
        return cls(tuple(found["removed"]), found["losses"], found["facts"])


def stand_ins(config: FoldConfig, shape: ModelShape) -> tuple[int, ...]:
    """Blocks in place of those that are not chosen yet: as many, if that is known.

    Raises:
        UsageError: there are not so many, or they are not alike.
    """
    if config.removes_blocks and len({tuple(layer.widths().items()) for layer in shape.layers}) > 1:
        raise UsageError(
            "--depth takes out blocks that are alike, and those of this model differ in width: leave it out"
        )
    count = config.depth if isinstance(config.depth, int) else 0
    return cheapest_blocks([None, *[0.0] * (len(shape.layers) - 1)], count)


def without_blocks(
    whole: Checkpoint, shape: ModelShape, removed: tuple[int, ...], repairs: Mapping[str, Tensor]
) -> tuple[Checkpoint, "StockShape", Removal]:
    """A checkpoint without some blocks, its shape, and what has gone."""
    view = ShallowCheckpoint(whole, removed, repairs)
    return view, running_shape(view), removal_of(whole.tensors, shape, removed)


def removal_of(tensors: Mapping[str, TensorInfo], shape: ModelShape, removed: tuple[int, ...]) -> Removal:
    """What goes with some blocks of a model of these tensors."""
    return Removal(shape, sum(info.nbytes for info in tensors.values()), removed)


def choose(context: FoldContext, blocks: "Blocks", ranks: Ranks, notify: Notify) -> Depth:
    """Choose blocks; all processes call this alike.

    Args:
        context: the whole model, and where to work.
        blocks: what measures them.
        ranks: the processes.
        notify: told of every stage.
    """
    known = ranks.run_on_main(partial(Depth.load, context.work))
    if known is not None:
        return known
    config, losses = context.config, blocks.losses(context.read_layer, notify)
    if isinstance(config.depth, int):
        removed = cheapest_blocks(losses, config.depth)
    else:
        curves = _curves(context, ranks, notify)
        removed = best_blocks(losses, partial(_error, context, curves))
    depth = Depth(removed, losses, blocks.facts)
    ranks.run_on_main(partial(depth.save, context.work))
    ranks.run_on_main(partial(shutil.rmtree, _apart(context), ignore_errors=True))
    return depth


def _apart(context: FoldContext) -> Path:
    """Where curves of the whole model are measured: what is found there is not for what is left of it."""
    return context.states / "whole"


def _curves(context: FoldContext, ranks: Ranks, notify: Notify) -> Sensitivities:
    """What every layer of the whole model would lose by every width."""
    apart = dataclasses.replace(context, work=_apart(context))
    ranks.run_on_main(partial(share_tokens, context.work, apart.work))
    method = ranks.run_main_first(lambda: method_of(context.config.method).build(apart, notify))
    method.ready(apart.read_layer, notify)
    curves = method.measure(apart.read_layer, float(context.config.ratio or 0.0), notify)
    assert curves is not None
    return curves


def _error(context: FoldContext, curves: Sensitivities, removed: tuple[int, ...]) -> float:
    """Predicted error of the widths that make up the rest of the ratio: equal ones exactly, others in legal steps."""
    kept, shape = kept_blocks(len(context.shape.layers), removed), context.shape
    left = dataclasses.replace(shape, layers=tuple(shape.layers[index] for index in kept))
    some = Sensitivities([curves.layers[index] for index in kept])
    config = context.config
    if config.allocation != "adaptive":
        config = dataclasses.replace(config, multiple_of=1)
    widths = plan_widths(left, config, some, shape)
    return some.error(left.layers, widths)
