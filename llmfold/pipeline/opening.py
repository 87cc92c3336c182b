"""Opening the model that is to be folded, and planning a fold of it."""

import json
import os
from pathlib import Path

import torch

from llmfold.checkpoint import Checkpoint, Source, TensorInfo, resolve
from llmfold.checkpoint.accept import refuse_model_code, refuse_quantised_config
from llmfold.checkpoint.jsonfile import read_bounded, read_object
from llmfold.checkpoint.locate import locate
from llmfold.checkpoint.paths import regular_file
from llmfold.checkpoint.reader import CONFIG_FILE
from llmfold.config import DTYPES, FoldConfig
from llmfold.data.plain_text import read_plain_text
from llmfold.demo import DEMO_NAME
from llmfold.errors import CheckpointError
from llmfold.models import ModelShape, check_tensors, expected_tensors, shape_of
from llmfold.models.forward import forward_context
from llmfold.models.plain import plain_settings
from llmfold.models.tying import stored_shape
from llmfold.planning import FoldPlan, make_plan

GENERATION_CONFIG = "generation_config.json"


def open_source(source: Source) -> tuple[Checkpoint, ModelShape]:
    """Open a checkpoint and check every header against its config.

    Raises:
        CheckpointError: see :mod:`llmfold.checkpoint`, :func:`llmfold.models.check_tensors` and
            :func:`llmfold.models.tying.stored_shape`.
    """
    checkpoint, shape = _opened(source)
    forward_context(checkpoint.config, shape)  # refuses what the forward passes could not do, before any work
    return checkpoint, shape


def _opened(source: Source) -> tuple[Checkpoint, ModelShape]:
    checkpoint = Checkpoint.open(source.folder)
    _check_generation_config(source.folder)
    refuse_model_code(checkpoint.config, str(source.folder))
    shape = stored_shape(checkpoint)
    check_tensors(shape, {t.name: t.shape for t in checkpoint.tensors.values()})
    checkpoint.side_files()  # refuses those that could not be copied when all is done
    return checkpoint, shape


def _check_generation_config(folder: Path) -> None:
    """Raise CheckpointError where transformers could not load the model for its generation config, which is no object.

    One that is no JSON at all is passed over, as transformers does.
    """
    path = folder / GENERATION_CONFIG
    try:
        value = json.loads(read_bounded(regular_file(folder, GENERATION_CONFIG))) if path.is_file() else {}
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download the file again, or remove it")


def check_data(config: FoldConfig) -> None:
    """Raise UsageError, before any work is done, where a local file of ``--data`` cannot be read as text."""
    path = Path(os.path.expanduser(config.data or ""))
    if config.reads_text and os.path.isfile(path):
        read_plain_text(path, config.text_column, characters=1)


def plan_from_config(config: FoldConfig) -> FoldPlan:
    """Plan a fold from a hub model's config alone, without its weights; local folders are checked in full.

    Raises:
        LlmfoldError: as :func:`llmfold.fold` does before it begins to work.
    """
    check_data(config)
    if config.model == DEMO_NAME or os.path.exists(os.path.expanduser(config.model)):
        source = locate(config.model, config.revision)
        checkpoint, shape = _opened(source)
        if plain_settings(checkpoint.config) is None:  # a plain config holds nothing that could be refused
            forward_context(checkpoint.config, shape)
        return make_plan(shape, checkpoint.tensors, config)
    source = resolve(config.model, revision=config.revision, weights=False)
    raw = read_object(regular_file(source.folder, CONFIG_FILE), unique_keys=False)
    refuse_quantised_config(raw, config.model)
    refuse_model_code(raw, config.model)
    shape = shape_of(raw)
    stored = str(raw.get("dtype") or raw.get("torch_dtype"))
    dtype = getattr(torch, stored) if stored in DTYPES[1:] else torch.float32
    tensors = {name: TensorInfo(name, dtype, size, shard="") for name, size in expected_tensors(shape).items()}
    return make_plan(shape, tensors, config)
