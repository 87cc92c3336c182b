"""The engine: one decoder layer at a time from the source's shards, through folding, into the output's shards."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfold.architectures import ModelShape, Role, check_tensors, expected_tensors, shape_of, tensor_name
from llmfold.baselines import replan
from llmfold.checkpoint import (
    MARKER_FILE,
    Checkpoint,
    Journal,
    ShardWriter,
    Source,
    TensorInfo,
    WorkFolder,
    plan_shards,
    resolve,
)
from llmfold.checkpoint.accept import refuse_quantised_config
from llmfold.checkpoint.storage import write_error
from llmfold.config import DTYPES, SELF_DATA, FoldConfig
from llmfold.demo import DEMO_NAME
from llmfold.errors import CheckpointError, LlmfoldError, OutputError, UsageError
from llmfold.methods.base import LayerMethod
from llmfold.methods.build import build_method
from llmfold.methods.measure import SENSITIVITIES_FILE
from llmfold.methods.merging import Merging
from llmfold.methods.source import Setting
from llmfold.methods.tokens import TOKENS_FILE
from llmfold.planning import FoldPlan, Sensitivities, make_plan
from llmfold.report.record import FoldReport, versions
from llmfold.sources import locate, public_name
from llmfold.streaming.forward import forward_context
from llmfold.streaming.memory import PeakMemory, return_freed_blocks
from llmfold.streaming.output import MODELING_FILE, modeling_source, output_config
from llmfold.streaming.prefetch import ReadAhead, WriteBehind
from llmfold.streaming.progress import Listener, Silent
from llmfold.streaming.states import STATE_FOLDER
from llmfold.verification import DamagedError, verify

METHOD, OUTSIDE, LAYER = "method", "outside", "layer-"


def _layer_unit(index: int) -> str:
    return f"{LAYER}{index}"


@dataclass
class Stages:
    """Seconds by stage, in the order the stages were first entered."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what happens inside under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def open_source(source: Source) -> tuple[Checkpoint, ModelShape]:
    """Open a checkpoint and check every header against its config.

    Raises:
        CheckpointError: see :mod:`llmfold.checkpoint` and :func:`llmfold.architectures.check_tensors`.
    """
    checkpoint = Checkpoint.open(source.folder)
    shape = shape_of(checkpoint.config)
    check_tensors(shape, {t.name: t.shape for t in checkpoint.tensors.values()})
    forward_context(checkpoint.config, shape)  # refuses what the forward passes could not do, before any work
    return checkpoint, shape


def plan_from_config(config: FoldConfig) -> FoldPlan:
    """Plan a fold from a hub model's config alone, without its weights; local folders are checked in full.

    Raises:
        LlmfoldError: as :func:`fold_checkpoint` does before it begins to work.
    """
    if config.model == DEMO_NAME or os.path.exists(os.path.expanduser(config.model)):
        checkpoint, shape = open_source(locate(config.model, config.revision))
        return make_plan(shape, checkpoint.tensors, config)
    source = resolve(config.model, revision=config.revision, weights=False)
    raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    refuse_quantised_config(raw, config.model)
    shape = shape_of(raw)
    stored = str(raw.get("dtype") or raw.get("torch_dtype"))
    dtype = getattr(torch, stored) if stored in DTYPES[1:] else torch.float32
    tensors = {
        name: TensorInfo(name, dtype, size, torch.Size(size).numel() * dtype.itemsize, "")
        for name, size in expected_tensors(shape).items()
    }
    return make_plan(shape, tensors, config)


def pick_device(name: str) -> torch.device:
    """Resolve ``auto`` to CUDA where present, else the CPU.

    Raises:
        UsageError: a device that torch does not know or this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that cannot hold a number, such as meta, is refused too
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used here: {reason}") from error
    return device


def fold_checkpoint(config: FoldConfig, listener: Listener | None = None) -> FoldReport:
    """Fold a checkpoint into ``config.output_path``.

    Memory is bounded by one decoder layer and the clustering's work area. The output appears in one rename after it has
    been reloaded and checked; a killed run resumes at the last whole layer.

    Raises:
        LlmfoldError: bad options, a damaged or unsupported source, an output that cannot be written, or a result that
            does not reload to what was produced. Nothing is left at the output path.
    """
    return_freed_blocks()
    with PeakMemory() as memory:
        report = _Run(config, listener or Silent()).execute(memory)
    return report


class _Run:
    """One fold, from source to published folder."""

    def __init__(self, config: FoldConfig, listener: Listener) -> None:
        self.config, self.listener, self.stages = config, listener, Stages()
        self.device = pick_device(config.device)
        self.source = locate(config.model, config.revision)
        self.checkpoint, self.shape = open_source(self.source)
        self.plan = make_plan(self.shape, self.checkpoint.tensors, config)
        self.records: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.data = _public_data(config.data)

    def execute(self, memory: PeakMemory) -> FoldReport:
        output = self.config.output_path
        with WorkFolder.open(output, overwrite=self.config.overwrite, source=self.source.folder) as work:
            with work.open_journal(self._head()) as journal, _tidy(work, journal):
                resumed = sum(unit.startswith(LAYER) for unit in journal.done)
                self._fold_all(work.folder, journal)
                digests = {name: d for entry in journal.done.values() for name, d in entry.digests.items()}
                with _writing(work.folder):
                    self._write_side_files(work.folder)
                self.listener.stage("reload check")
                with self.stages("check"):
                    verification = verify(work.folder, self.plan, digests, self.config.verify, self.checkpoint.config)
            report = FoldReport(
                output=work.output,
                source={"name": public_name(self.source), "revision": self.source.revision},
                config=self._public_config(),
                plan=self.plan.to_dict(),
                layers=self.records,
                verification=verification,
                seconds=self.stages.seconds,
                data=self.facts,
                peak_memory_bytes=memory.bytes,
                resumed_layers=resumed,
            )
            with _writing(work.folder):
                report.save(work.folder)
                if self.data not in (None, SELF_DATA):
                    (work.folder / TOKENS_FILE).unlink(missing_ok=True)  # outside text is not ours to publish
            self.listener.stage("publish")
            work.publish()
        return report

    def _head(self) -> dict[str, Any]:
        """What a resumed run must agree on: source, options, and all that can move a bit of the result."""
        return {
            "source": self.checkpoint.fingerprint(),
            "config": self._work_config(),
            "versions": versions(),
            "text": _content(self.config.data),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }

    def _fold_all(self, folder: Path, journal: Journal) -> None:
        layers = len(self.shape.layers)
        done = sum(unit.startswith(LAYER) for unit in journal.done)
        method = self._prepare(folder, journal) if done < layers or self.config.replans else None
        self.listener.start(self.plan, done)
        shards = plan_shards(self.plan.tensors, self.config.shard_bytes)
        if OUTSIDE in journal.done:
            _check_shards_are_there(folder, [shard.name for shard in shards.shards])
        with ShardWriter(shards, folder) as writer:
            writer.create()
            if OUTSIDE not in journal.done:
                self.listener.stage("embeddings")
                self._copy_outside(writer, journal)
            if method is not None and done < layers:
                method.start(done, drifted=any(index < done for index in self.plan.folded_layers))
                indices, on_gpu = range(done, layers), self.device.type == "cuda"
                # A folded layer that waits in host memory is bounded only where the work area is the device's, and a
                # method that carries state must see it committed first.
                overlap = on_gpu and isinstance(method, Merging)
                with (
                    ReadAhead(self._read_layer, self._confirm_layer, indices, pin=on_gpu) as ahead,
                    WriteBehind(enabled=overlap) as behind,
                ):
                    for index in indices:
                        self._fold_one(index, method, writer, journal, ahead, behind)
                        self.listener.advance()
        shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
        self.facts = journal.done[METHOD].record
        self.records = [journal.done[_layer_unit(index)].record for index in range(layers)]

    def _prepare(self, folder: Path, journal: Journal) -> LayerMethod:
        """Get the method ready: sample or draw what it measures on, and let that decide the widths if it may."""
        with self.stages("prepare"), torch.no_grad():
            if self.plan.folded_layers:
                setting = Setting(self.config, self.checkpoint, self.shape, folder, self.device)
                method = build_method(setting, self.listener.stage)
            else:
                method = Merging(self.config, self.shape, self.device)
            if self.config.measures:
                self.plan = make_plan(self.shape, self.checkpoint.tensors, self.config, self._curves(folder, method))
            self.plan = replan(self.plan, method)
        if METHOD not in journal.done:
            journal.append(METHOD, {}, method.summary())
        return method

    def _curves(self, folder: Path, method: LayerMethod) -> Sensitivities | None:
        path = folder / SENSITIVITIES_FILE
        if path.exists():
            return Sensitivities.load(path)
        curves = method.measure(self._read_layer, float(self.config.ratio or 0.0), self.listener.stage)
        if curves is not None:
            curves.save(path)
        return curves

    def _read_layer(self, index: int) -> dict[Role, Tensor]:
        layer = self.shape.layers[index]
        return {role: self.checkpoint.read(tensor_name(index, role)) for role, _ in self.shape.layer_roles(layer)}

    def _confirm_layer(self, index: int) -> None:
        for role, _ in self.shape.layer_roles(self.shape.layers[index]):
            self.checkpoint.confirm(tensor_name(index, role))

    def _copy_outside(self, writer: ShardWriter, journal: Journal) -> None:
        inside = {
            tensor_name(i, role)
            for i, layer in enumerate(self.shape.layers)
            for role, _ in self.shape.layer_roles(layer)
        }
        digests = {}
        for name in self.checkpoint.tensors:
            if name not in inside:
                with self.stages("read"):
                    tensor = self.checkpoint.read(name)
                with self.stages("write"):
                    digests[name] = self._write(writer, name, tensor)
        self._finish(OUTSIDE, digests, {}, writer, journal)

    def _fold_one(
        self,
        index: int,
        method: LayerMethod,
        writer: ShardWriter,
        journal: Journal,
        ahead: ReadAhead,
        behind: WriteBehind,
    ) -> None:
        before, after = self.shape.layers[index], self.plan.after.layers[index]
        self.listener.stage(f"layer {index}: read")
        with self.stages("read"):
            weights = ahead.take(index)
        self.listener.stage(f"layer {index}: fold")
        with torch.no_grad():
            weights, record = method.fold(index, weights, before, after)
        for stage, seconds in record.seconds.items():
            self.stages.add(stage, seconds)
        self.listener.stage(f"layer {index}: write")

        def write() -> None:
            with self.stages("write"):
                digests = {
                    tensor_name(index, role): self._write(writer, tensor_name(index, role), tensor)
                    for role, tensor in weights.items()
                }
                method.flush()
            self._finish(_layer_unit(index), digests, dataclasses.asdict(record), writer, journal)
            method.committed()

        behind.submit(write)

    def _write(self, writer: ShardWriter, name: str, tensor: Tensor) -> str:
        dtype = tensor.dtype if self.config.dtype == "auto" else getattr(torch, self.config.dtype)
        return writer.write(name, tensor.to(dtype))

    def _finish(
        self, unit: str, digests: dict[str, str], record: dict[str, Any], writer: ShardWriter, journal: Journal
    ) -> None:
        with self.stages("write"):
            writer.sync()
            journal.append(unit, digests, record)

    def _write_side_files(self, folder: Path) -> None:
        for path in self.checkpoint.side_files(remote_code=self.config.trust_remote_code):
            target = folder / path.relative_to(self.source.folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        _write_json(folder / "config.json", output_config(self.checkpoint.config, self.plan))
        _write_json(folder / MARKER_FILE, self._provenance())
        if self.plan.needs_remote_code:
            (folder / MODELING_FILE).write_text(modeling_source(self.plan), encoding="utf-8")

    def _provenance(self) -> dict[str, Any]:
        return {
            "made_by": "llmfold",
            "source": {"name": public_name(self.source), "revision": self.source.revision},
            "config": self._work_config(),
            "plan": self.plan.to_dict(),
            "data": self.facts.get("data", "none"),
            "versions": versions(),
        }

    def _work_config(self) -> dict[str, Any]:
        return {**self.config.work(), "model": public_name(self.source), "data": self.data}

    def _public_config(self) -> dict[str, Any]:
        values = dataclasses.asdict(self.config)
        values.update(model=public_name(self.source), output=self.config.output_path.name, align=self.config.alignment)
        values["data"] = self.data
        values["layers"] = {str(i): dataclasses.asdict(o) for i, o in sorted(self.config.layers.items())}
        return values


def _public_data(data: str | None) -> str | None:
    """Name of the outside text that may be published: files by their last part, hub data sets as they are."""
    if data is None or not (data.startswith((".", "/", "~")) or os.path.exists(data)):
        return data
    return os.path.basename(data)


def _content(data: str | None) -> str | None:
    """SHA-256 of a text file, so that another text of the same name does not resume a run."""
    path = Path(os.path.expanduser(data or ""))
    if not data or not path.is_file():
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_shards_are_there(folder: Path, names: list[str]) -> None:
    """Refuse to resume where finished tensors have gone: new, empty files would take their place."""
    gone = [name for name in names if not (folder / name).exists()]
    if gone:
        raise OutputError(f"{folder / gone[0]} of the interrupted run is gone: delete {folder} and run again")


@contextmanager
def _tidy(work: WorkFolder, journal: Journal) -> Iterator[None]:
    """Leave nothing of a run that cannot be resumed: nothing is written, or its source or its files are damaged."""
    try:
        yield
    except BaseException as error:
        prepared_only = isinstance(error, LlmfoldError) and journal.done.keys() <= {METHOD}
        damaged = isinstance(error, CheckpointError | DamagedError) and not isinstance(error.__cause__, OSError)
        if damaged or prepared_only or not (journal.done or isinstance(error, KeyboardInterrupt)):
            work.discard()
        raise


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in a sentence why a small file could not be written into ``folder``."""
    try:
        yield
    except OSError as error:
        raise write_error(error, folder / "config.json", 0) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
