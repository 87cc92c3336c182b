"""Opening the model that is to be folded, and planning a fold of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmfold.checkpoint import Checkpoint, Source, TensorInfo, resolve
from llmfold.checkpoint.accept import refuse_model_code, refuse_quantised_config
from llmfold.checkpoint.adapter import ADAPTER_CONFIG
from llmfold.checkpoint.locate import locate
from llmfold.checkpoint.weights import INDEX_FILE
from llmfold.config import DTYPES, FoldConfig
from llmfold.data.plain_text import read_plain_text
from llmfold.data.texts import read_text
from llmfold.data.tokenizer import load_tokenizer, max_token_id
from llmfold.data.tokens import resolve_effort, token_ids
from llmfold.demo import DEMO_NAME
from llmfold.errors import CheckpointError, UsageError
from llmfold.folder_files import CONFIG_FILE, raw_config, regular_file
from llmfold.jsonfile import read_bounded
from llmfold.methods.method import method_of
from llmfold.model_path import local_folder
from llmfold.models import ARCHITECTURES, ModelShape, shape_of, stock_config
from llmfold.models.family_settings import family_settings
from llmfold.models.plain import plain_settings
from llmfold.models.shallower import ShallowCheckpoint, shallow_config
from llmfold.models.stock_build import check_generation_config, check_stock_builds
from llmfold.models.tying import stored_shape, with_stock
from llmfold.pipeline.depth import removal_of, stand_ins
from llmfold.pipeline.output_tokenizer import check_tokenizer_can_be_kept
from llmfold.planning import FoldPlan, make_plan

if TYPE_CHECKING:
    from llmfold.models.stock_shape import StockShape

GENERATION_CONFIG = "generation_config.json"


def open_source(source: Source) -> tuple[Checkpoint, "StockShape"]:
    """Open a checkpoint, check every header against its config, and build its stock model.

    Raises:
        CheckpointError: see :mod:`llmfold.checkpoint`, :meth:`llmfold.models.ModelShape.check_stored` and
            :func:`llmfold.models.tying.stored_shape`.
    """
    checkpoint, shape = _opened(source)
    if shape.architecture.registered:
        family_settings(checkpoint.config, shape)  # refuses what no forward pass could do, before any work
    return checkpoint, with_stock(checkpoint, shape)


def _opened(source: Source) -> tuple[Checkpoint, ModelShape]:
    checkpoint = Checkpoint.open(source.folder)
    _check_generation_config(source.folder)
    refuse_model_code(checkpoint.config, str(source.folder))
    shape = stored_shape(checkpoint)
    shape.check_stored(checkpoint.shapes)
    # A plain config holds nothing that could be refused, and other families were built to tell their shape.
    if shape.architecture.registered and plain_settings(checkpoint.config) is None:
        family_settings(checkpoint.config, shape)
        check_stock_builds(checkpoint.config)
    checkpoint.side_files()  # refuses those that could not be copied when all is done
    return checkpoint, shape


def _check_generation_config(folder: Path) -> None:
    """Raise CheckpointError where transformers could not load the model for its generation config.

    One that is no JSON at all is passed over, as transformers does.
    """
    path = folder / GENERATION_CONFIG
    try:
        value = json.loads(read_bounded(regular_file(folder, GENERATION_CONFIG))) if path.is_file() else {}
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: download the file again, or remove it")
    check_generation_config(value, path)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds files of weights, of whatever kind."""
    return any(path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf") for path in folder.iterdir()) or any(
        (folder / name).exists() for name in (INDEX_FILE, ADAPTER_CONFIG)
    )


def check_family(config: FoldConfig, shape: ModelShape) -> None:
    """Raise UsageError where options are for families that are registered, or for plain layers, and others are here.

    So does the method where it cannot fold the model itself.
    """
    if not shape.architecture.registered:
        _check_unregistered(config, shape)
    method_of(config.method).check_model(config, shape)


def _check_unregistered(config: FoldConfig, shape: ModelShape) -> None:
    family, of_type = shape.architecture, f"the model is of type {shape.architecture.model_type}"
    asked = {
        f"--method {config.method}": config.facts.own_widths,
        "--align gauge": config.alignment == "gauge",
        "--allocation adaptive": config.allocation == "adaptive",
        "--depth": config.removes_blocks,
    }
    for option in (option for option, is_asked in asked.items() if is_asked):
        raise UsageError(f"{option} is for {', '.join(sorted(ARCHITECTURES))} alone, and {of_type}: leave it out")
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models

    assert isinstance(shape, StockShape)
    if config.facts.plain_only and not shape.is_plain:
        raise UsageError(
            f"--method {config.method} is for layers of one gated MLP and one attention with matrices of their own, "
            f"which {family.causal_lm} has not, and {of_type}: leave it out"
        )


def check_output_class(config: Mapping[str, Any], plan: FoldPlan) -> None:
    """Raise UsageError, before any work, where the stock class does not build the planned widths.

    Args:
        config: raw, of the source.
        plan: the fold; of a registered family the widths are legal by what is known of it.
    """
    if plan.before.architecture.registered:
        return
    from llmfold.models.stock_shape import StockShape  # builds on transformers' models
    from llmfold.models.width_keys import holds

    assert isinstance(plan.before, StockShape)
    if not holds(stock_config(config), plan.before, plan.after.layers):
        raise UsageError(
            f"{plan.before.architecture.causal_lm} builds no model of the planned widths: choose another ratio, or "
            "--multiple-of"
        )


def check_data(config: FoldConfig) -> None:
    """Raise UsageError, before any work is done, where a local file of ``--data`` cannot be read as text."""
    path = Path(os.path.expanduser(config.data or ""))
    if config.reads_text and os.path.isfile(path):
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
    """Plan a fold by the config alone of a hub's model, or of a folder without weights; others are checked in full.

    Raises:
        LlmfoldError: as :func:`llmfold.fold` does before it begins to work.
    """
    check_data(config)
    folder = local_folder(config.model, config.revision) if config.model != DEMO_NAME else None
    bare = folder is not None and (folder / CONFIG_FILE).is_file() and not has_weights(folder)
    if not bare and (config.model == DEMO_NAME or folder is not None):
        source = locate(config.model, config.revision)
        checkpoint, shape = _opened(source)
        check_family(config, shape)
        resolve_effort(config, shape)  # refuses sequences that the model has no positions for
        _check_texts(config, checkpoint.folder, shape)
        plan = _planned(config, checkpoint, shape)
        check_output_class(checkpoint.config, plan)
        check_tokenizer_can_be_kept(checkpoint.folder, plan)
        return plan
    source = resolve(config.model, revision=config.revision, weights=False)
    raw = raw_config(source.folder)
    refuse_quantised_config(raw, config.model)
    refuse_model_code(raw, config.model)
    shape = shape_of(raw)
    check_family(config, shape)
    stored = str(raw.get("dtype") or raw.get("torch_dtype"))
    dtype = getattr(torch, stored) if stored in DTYPES[1:] else torch.float32
    plan = _planned_bare(config, raw, shape, dtype)
    check_output_class(raw, plan)
    return plan


def _planned(config: FoldConfig, checkpoint: Checkpoint, shape: ModelShape) -> FoldPlan:
    """A plan before anything is measured."""
    blocks = stand_ins(config, shape)
    if not blocks:
        return make_plan(shape, checkpoint.tensors, config)
    view = ShallowCheckpoint(checkpoint, blocks, {})
    return make_plan(stored_shape(view), view.tensors, config, removal=removal_of(checkpoint.tensors, shape, blocks))


def _planned_bare(config: FoldConfig, raw: Mapping[str, Any], shape: ModelShape, dtype: torch.dtype) -> FoldPlan:
    """The same of a config without tensors."""

    def tensors(of: ModelShape) -> dict[str, TensorInfo]:
        return {name: TensorInfo(name, dtype, size, shard="") for name, size in of.stored_tensors().items()}

    blocks = stand_ins(config, shape)
    left = shape_of(shallow_config(raw, blocks)) if blocks else shape
    return make_plan(left, tensors(left), config, removal=removal_of(tensors(shape), shape, blocks))
