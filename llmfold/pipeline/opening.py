"""Opening the model that is to be folded, and planning a fold of it."""

import json
import os
from pathlib import Path

import torch

from llmfold.checkpoint import Checkpoint, Source, TensorInfo, resolve
from llmfold.checkpoint.accept import refuse_model_code, refuse_quantised_config
from llmfold.checkpoint.locate import locate
from llmfold.config import DTYPES, FoldConfig
from llmfold.data.plain_text import read_plain_text
from llmfold.data.texts import read_text
from llmfold.data.tokenizer import load_tokenizer, max_token_id
from llmfold.data.tokens import resolve_effort, token_ids
from llmfold.demo import DEMO_NAME
from llmfold.errors import CheckpointError
from llmfold.models import ModelShape, check_tensors, expected_tensors, shape_of
from llmfold.models.forward import forward_context
from llmfold.models.plain import plain_settings
from llmfold.models.stock_build import check_generation_config, check_stock_builds
from llmfold.models.tying import stored_shape
from llmfold.pipeline.output_tokenizer import check_tokenizer_can_be_kept
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
    if plain_settings(checkpoint.config) is None:  # a plain config holds nothing that could be refused
        forward_context(checkpoint.config, shape)
        check_stock_builds(checkpoint.config)
    checkpoint.side_files()  # refuses those that could not be copied when all is done
    return checkpoint, shape


def _check_generation_config(folder: Path) -> None:
    """Raise CheckpointError where transformers could not load the model for its generation config.

    One that is no JSON at all is passed over, as transformers does.
    """
    path = folder / GENERATION_CONFIG
    try:
        value = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download the file again, or remove it")
    check_generation_config(value, path)


def check_data(config: FoldConfig) -> None:
    """Raise UsageError, before any work is done, where a local file of ``--data`` cannot be read as text."""
    path = Path(config.data or "").expanduser()
    if config.reads_text and path.is_file():
        read_plain_text(path, config.text_column, characters=1)


def require_tokenizer(config: FoldConfig, folder: Path) -> None:
    """Raise CheckpointError, before any work is done, where a text will be read and no tokenizer can be."""
    if config.needs_tokenizer:
        load_tokenizer(folder)


def _check_texts(config: FoldConfig, folder: Path, shape: ModelShape) -> None:
    """Read local texts as the run will: raise LlmfoldError where one is too short, or has tokens without a row."""
    if not config.needs_tokenizer:
        return
    from llmfold.methods.source import calibration_tokens  # takes seconds, which most plans do without

    require_tokenizer(config, folder)
    if config.reads_text and Path(str(config.data)).expanduser().is_file():
        calibration_tokens(config, folder, shape)
    if config.eval_text is not None and max_token_id(folder) >= shape.vocabulary:
        token_ids(folder, read_text(config.eval_text, config.text_column).content, shape.vocabulary)


def plan_from_config(config: FoldConfig) -> FoldPlan:
    """Plan a fold from a hub model's config alone, without its weights; local folders are checked in full.

    Raises:
        LlmfoldError: as :func:`llmfold.fold` does before it begins to work.
    """
    check_data(config)
    if config.model == DEMO_NAME or os.path.exists(os.path.expanduser(config.model)):
        source = locate(config.model, config.revision)
        checkpoint, shape = _opened(source)
        resolve_effort(config, shape)  # refuses sequences that the model has no positions for
        _check_texts(config, checkpoint.folder, shape)
        plan = make_plan(shape, checkpoint.tensors, config)
        check_tokenizer_can_be_kept(checkpoint.folder, plan)
        return plan
    source = resolve(config.model, revision=config.revision, weights=False)
    raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    refuse_quantised_config(raw, config.model)
    refuse_model_code(raw, config.model)
    shape = shape_of(raw)
    stored = str(raw.get("dtype") or raw.get("torch_dtype"))
    dtype = getattr(torch, stored) if stored in DTYPES[1:] else torch.float32
    tensors = {name: TensorInfo(name, dtype, size, shard="") for name, size in expected_tensors(shape).items()}
    return make_plan(shape, tensors, config)
