"""The fold of an image model, from its plan to the published folder."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from llmfold.checkpoint import MARKER_FILE, ShardWriter, TensorSpec, WorkFolder, plan_shards
from llmfold.checkpoint.base_card import carried_over
from llmfold.checkpoint.locate import public_name
from llmfold.checkpoint.side_files import without_paths
from llmfold.environment import versions
from llmfold.folder_files import CONFIG_FILE
from llmfold.images.config import ImageConfig
from llmfold.images.measuring import data_words, implied_inputs
from llmfold.images.model import ImageModel, in_single_precision
from llmfold.images.plan import ImagePlan
from llmfold.images.program import PROGRAM_FILE, save_program
from llmfold.images.verification import verify_image
from llmfold.modules.fold import folded
from llmfold.modules.narrow import with_tensors
from llmfold.modules.probe import outputs
from llmfold.pipeline.progress import Listener
from llmfold.pipeline.provenance import provenance, source_name
from llmfold.records.fold import FoldRecord
from llmfold.records.saved import Save
from llmfold.runtime.limits import check_disk
from llmfold.runtime.memory import PeakMemory
from llmfold.runtime.storage import replace_json, writing
from llmfold.runtime.timing import StageTimer


def fold_image(
    model: ImageModel, plan: ImagePlan, listener: Listener, save: Save, inputs: Callable[[], Tensor | None]
) -> FoldRecord:
    """Fold an image model by a plan, check the result, and publish it in one rename.

    Args:
        model: with its weights.
        plan: of it.
        listener: hears of the stages.
        save: writes the record into the output, before that is published.
        inputs: makes what is measured on, as :func:`inputs_for` does; asked once the output is known to be writable.

    Raises:
        LlmfoldError: an output that cannot be written, or a result that does not reload to what was produced. Nothing
            is left at the output path.
    """
    assert model.checkpoint is not None
    config = plan.config
    stages = StageTimer()
    check_disk([config.output_path.absolute()], plan.bytes_written)
    with (
        PeakMemory() as memory,
        WorkFolder.open(config.output_path, overwrite=config.overwrite, source=model.source.folder) as work,
    ):
        try:
            with stages("invert"):
                seen = None if plan.module.unchanged else inputs()
            listener.stage("folding")
            with stages("fold"):
                narrower = _narrower(model, plan, seen, listener)
            with stages("write"), writing(work.folder / CONFIG_FILE, 0):
                listener.stage("writing")
                stored = _stored(model, narrower, config)
                digests = _write_tensors(work.folder, stored, config)
                notes = _write_side_files(work.folder, model, plan)
                written = _as_written(model, narrower, stored)
                if not plan.stock:
                    save_program(work.folder / PROGRAM_FILE, written, model.inputs)
            listener.stage("reload check")
            with stages("check"):
                with torch.inference_mode():
                    wanted = outputs(written, model.inputs)
                kind = model.kind if plan.stock else None
                verification = verify_image(work.folder, kind, digests, model.inputs, wanted)
            record = FoldRecord(
                output=work.output,
                source=source_name(model.source),
                config=_public(config, model),
                plan=plan.to_dict(),
                layers=[],
                verification=verification,
                seconds=stages.seconds,
                data={"data": data_words(model, config)},
                peak_memory_bytes=memory.bytes,
                notes=notes,
                base_card=carried_over(model.source.folder),
            )
            with writing(work.folder / CONFIG_FILE, 0):
                save(record, work.folder)
            listener.stage("publish")
            work.publish()
        except BaseException:
            work.discard()
            raise
    return record


def inputs_for(model: ImageModel, config: ImageConfig, listener: Listener) -> Tensor | None:
    """What folds of a model by options of one method and seed measure on; None where they measure nothing."""
    return implied_inputs(model, config, listener.stage) if config.measures else None


def _narrower(model: ImageModel, plan: ImagePlan, seen: Tensor | None, listener: Listener) -> nn.Module:
    if plan.module.unchanged:
        return with_tensors(model.module, {}).eval()
    options = cast(Any, plan.config)  # its words are those that the fold takes
    return folded(
        model.module,
        plan.module,
        options.method,
        cast(Any, plan.repair),
        seen,
        clustering=options.cluster,
        seed=options.seed,
        notify=listener.stage,
    )


def _stored(model: ImageModel, narrower: nn.Module, config: ImageConfig) -> dict[str, Tensor]:
    """Tensors by their names in the files, in the dtype that is written, in the order of the source."""
    assert model.checkpoint is not None
    assert model.layout is not None
    made = model.layout.store(model.layout.groups, narrower.state_dict())
    wanted = None if config.dtype == "auto" else getattr(torch, config.dtype)
    result = {}
    for name, info in model.checkpoint.tensors.items():
        dtype = wanted if wanted is not None and info.dtype.is_floating_point else info.dtype
        result[name] = made[name].to(dtype).contiguous()
    return result


def _as_written(model: ImageModel, narrower: nn.Module, stored: Mapping[str, Tensor]) -> nn.Module:
    """The narrower model with weights as they are in the files, rounded to their dtype, in float32."""
    assert model.layout is not None
    return with_tensors(narrower, in_single_precision(model.layout, stored.__getitem__)).eval()


def _write_tensors(folder: Path, stored: Mapping[str, Tensor], config: ImageConfig) -> dict[str, str]:
    """Write all tensors; their digests by name."""
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()]
    with ShardWriter(plan_shards(specs, config.shard_bytes), folder) as writer:
        writer.create()
        digests = {name: writer.write(name, tensor) for name, tensor in stored.items()}
        writer.sync()
    return digests


def _write_side_files(folder: Path, model: ImageModel, plan: ImagePlan) -> list[str]:
    """Config, preprocessor, licences and the mark of an output; what a person should know, a sentence each."""
    assert model.checkpoint is not None
    config = plan.config
    notes = model.checkpoint.copy_side_files(folder)
    written = {**without_paths(dict(plan.raw)), "architectures": [plan.image_class]}
    written["transformers_version"] = transformers.__version__
    if config.dtype != "auto":
        written["torch_dtype" if "torch_dtype" in written else "dtype"] = config.dtype
    replace_json(folder / CONFIG_FILE, written)
    origin = {
        "source": model.checkpoint.fingerprint(),
        "config": _public(config, model),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    facts = {"data": data_words(model, config)}
    replace_json(folder / MARKER_FILE, provenance(model.source, plan.to_dict(), facts, origin))
    return notes if plan.stock else [*notes, plan.loading_note]


def _public(config: ImageConfig, model: ImageModel) -> dict[str, Any]:
    """Every option, folders by their names only."""
    values = dataclasses.asdict(config)
    return {**values, "model": public_name(model.source), "output": config.output_path.name}
