"""Opening the model that is to be folded, and planning a fold of it."""

import json
import os

import torch

from llmfold.checkpoint import Checkpoint, Source, TensorInfo, resolve
from llmfold.checkpoint.accept import refuse_quantised_config
from llmfold.checkpoint.locate import locate
from llmfold.config import DTYPES, FoldConfig
from llmfold.demo import DEMO_NAME
from llmfold.models import ModelShape, check_tensors, expected_tensors, shape_of
from llmfold.models.forward import forward_context
from llmfold.models.plain import plain_settings
from llmfold.planning import FoldPlan, make_plan


def open_source(source: Source) -> tuple[Checkpoint, ModelShape]:
    """Open a checkpoint and check every header against its config.

    Raises:
        CheckpointError: see :mod:`llmfold.checkpoint` and :func:`llmfold.models.check_tensors`.
    """
    checkpoint, shape = _opened(source)
    forward_context(checkpoint.config, shape)  # refuses what the forward passes could not do, before any work
    return checkpoint, shape


def _opened(source: Source) -> tuple[Checkpoint, ModelShape]:
    checkpoint = Checkpoint.open(source.folder)
    shape = shape_of(checkpoint.config)
    check_tensors(shape, {t.name: t.shape for t in checkpoint.tensors.values()})
    checkpoint.side_files()  # refuses those that could not be copied when all is done
    return checkpoint, shape


def plan_from_config(config: FoldConfig) -> FoldPlan:
    """Plan a fold from a hub model's config alone, without its weights; local folders are checked in full.

    Raises:
        LlmfoldError: as :func:`llmfold.fold` does before it begins to work.
    """
    if config.model == DEMO_NAME or os.path.exists(os.path.expanduser(config.model)):
        source = locate(config.model, config.revision)
        checkpoint, shape = _opened(source)
        if plain_settings(checkpoint.config) is None:  # a plain config holds nothing that could be refused
            forward_context(checkpoint.config, shape)
        return make_plan(shape, checkpoint.tensors, config)
    source = resolve(config.model, revision=config.revision, weights=False)
    raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    refuse_quantised_config(raw, config.model)
    shape = shape_of(raw)
    stored = str(raw.get("dtype") or raw.get("torch_dtype"))
    dtype = getattr(torch, stored) if stored in DTYPES[1:] else torch.float32
    tensors = {name: TensorInfo(name, dtype, size, shard="") for name, size in expected_tensors(shape).items()}
    return make_plan(shape, tensors, config)
