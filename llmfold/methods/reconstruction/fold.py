"""Folding as reconstruction: a narrower layer gives what the layer gave, on the inputs that the dense model gives it.

Every layer is fitted alone. To have it correct what earlier layers got wrong was measured to hurt: their errors add
up, and the correction is mostly noise that is fitted (eval/results/tried.md). So there is one stream of hidden states,
the dense model's, and layers are independent.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import FoldContext, Folded, LayerMethod, ReadLayer, Weights
from llmfold.methods.dense import DenseStates, LayerInputs, Measurement
from llmfold.methods.method import Notify
from llmfold.methods.reconstruction.importance import Importance, Part
from llmfold.models import LayerShape, Role
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.planning.sensitivity import kept_neurons
from llmfold.repair.least_squares import ActivationSums, activation_sums, refit, refit_bias, relative_error
from llmfold.repair.refine import Refinement, refine
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, chunks, stored_tensors
from llmfold.runtime.seeding import mixed_seed
from llmfold.runtime.timing import StageTimer
from llmfold.selection.elimination import Elimination, eliminate_blocks, eliminate_units

SELECTION_RIDGE = 1e-3
RIDGES = (0.03, 0.3, 1.0, 3.0)
"""Pull of the consumer's rows towards what they were, as fractions of the mean diagonal; held-back rows choose."""
_GAUSSIAN_ROWS = 8192


@dataclass(frozen=True)
class ReconstructionOptions:
    """Settings of the reconstruction.

    Attributes:
        held_back: fraction of sequences on which ridges and refinements are judged.
        refinement: gradient steps after the closed form; zero steps leave that alone.
        gaussian: share of a Gram from x ~ N(0, gain²) mixed in, for directions that the rows lack.
        metric: (hidden, m) map of outputs whose squared norm selects neurons, or None.
        importance: gives every layer a metric of its own, in which neurons and heads are selected; or None.
    """

    held_back: float = 0.125
    refinement: Refinement = field(default_factory=Refinement)
    gaussian: float = 0.0
    metric: Tensor | None = None
    importance: Importance | None = None


class Reconstruction(LayerMethod):
    """``--method self``, ``calibrated`` and ``weights``: they differ in the hidden states that they measure on."""

    def __init__(
        self, context: FoldContext, measurement: Measurement, options: ReconstructionOptions, facts: dict[str, Any]
    ) -> None:
        """Set up; nothing is computed yet.

        Args:
            context: whose config gives the seed, and the dtype of the tensors written.
            measurement: hidden states to measure on.
            options: settings.
            facts: what is known of the states, for the report.
        """
        self.config, self.measurement, self.options, self._facts = context.config, measurement, options, facts
        self._states = DenseStates(measurement)
        self._chunk = CHUNK

    def ready(self, read_layer: ReadLayer, notify: Notify) -> None:
        """Find out what directions of the residual stream matter, if units are selected by that."""
        if self.options.importance is not None:
            self.options.importance.ready(read_layer, notify)

    def measure(self, read_layer: ReadLayer, ratio: float, notify: Notify) -> Sensitivities:
        """Curves of all layers: the rise of the ridge objective along the backward elimination of neurons and heads.

        Errors count in nats where it is known what directions matter, else relative to the residual stream that they
        disturb, since the next RMSNorm divides by it; that makes those of different layers and parts comparable. Each
        process eliminates in layers of its own; the order found is kept, and :meth:`fold` takes it up.

        Args:
            read_layer: tensors of a layer by role.
            ratio: about the fraction that will go, which bounds how far curves reach.
            notify: told of every layer.
        """
        measurement, layers = self.measurement, self.measurement.shape.layers
        for group in self.groups(range(len(layers))):
            notify(f"layer {group[0]}: measure")
            self.prepare(group, read_layer)
            for index in measurement.team.shard(group):
                inputs = self._states.around(index, measurement.wide(read_layer(index)))
                find_orders = partial(self._find_orders, inputs, kept_neurons(layers[index].intermediate, ratio))
                measurement.team.with_oom_retry(find_orders, self._chunk, f"layer {index}")
        self._states.close()
        rows = measurement.size[0] * measurement.size[1] * measurement.shape.hidden
        curves = []
        for index in range(len(layers)):
            costs = (_read_order(self._order_file(index, part)).costs for part in ("neurons", "heads"))
            curves.append(LayerCurves(*([0.0, *(each.cumsum(0) / rows).tolist()] for each in costs)))
        return Sensitivities(curves)

    def _find_orders(self, inputs: LayerInputs, keep: int, chunk: int) -> None:
        layer = _Layer(self, inputs, chunk)
        layer.head_order(1)
        layer.neuron_order(keep)

    def groups(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Layers (ascending) whose states are at hand together: one for each process."""
        count = self.measurement.team.count
        return (layers[start : start + count] for start in range(0, len(layers), count))

    def prepare(self, layers: Sequence[int], read_layer: ReadLayer) -> None:
        """Move the dense states to a group of layers; all processes call this alike."""
        move = partial(self._states.move_to, layers, read_layer)
        _, self._chunk = self.measurement.team.with_oom_retry(move, self._chunk, f"layer {layers[0]}")

    def fold(self, index: int, weights: Weights, before: LayerShape, after: LayerShape) -> Folded:
        """Choose units, refit their consumers, and refine what is left of the MLP."""
        if before == after:
            return dict(weights), LayerRecord()
        inputs = self._states.around(index, self.measurement.wide(weights))

        def attempt(chunk: int) -> Folded:
            return _Layer(self, inputs, chunk).fold(weights, after)

        return self.measurement.team.with_oom_retry(attempt, self._chunk, f"layer {index}")[0]

    def data_facts(self) -> dict[str, Any]:
        """What the states are, for the report."""
        return self._facts

    def _order_file(self, index: int, part: Part) -> Path:
        return self.measurement.work / STATE_FOLDER / f"order-{index:05d}-{part}.safetensors"

    def order(self, index: int, part: Part, keep: int, eliminate: Callable[[], Elimination]) -> Elimination:
        """Elimination down to ``keep``, from the file of one that went as far or farther where there is one."""
        path = self._order_file(index, part)
        if path.exists() and len(_read_order(path).kept) > keep:
            path.unlink()
        order = Elimination(**stored_tensors(path, lambda: dict(vars(eliminate()))))
        units = len(order.kept) + len(order.removed)
        return Elimination.of(units, order.removed[: units - keep], order.costs[: units - keep])


def _read_order(path: Path) -> Elimination:
    return Elimination(**load_file(path))


def split(sequences: int, held_back: float, chunk: int = CHUNK) -> tuple[list[slice], list[slice]]:
    """Chunks of sequences to fit on, and chunks to judge on; a single block of ``CHUNK`` is only fitted on."""
    blocks = -(-sequences // CHUNK)
    held = max(1, round(blocks * held_back)) if blocks > 1 else 0
    first_held = (blocks - held) * CHUNK if held else sequences
    parts = list(chunks(sequences, chunk))
    return [p for p in parts if p.start < first_held], [p for p in parts if p.start >= first_held]


class _Sums(NamedTuple):
    """Sums over the rows to fit on, and over all rows."""

    train: ActivationSums
    whole: ActivationSums


class _Refitted(NamedTuple):
    """A consumer by role, refit on the rows to fit on and on all rows, and what the report says of it."""

    train: dict[Role, Tensor]
    whole: dict[Role, Tensor]
    record: dict[str, Any]


class _Layer:
    """One layer on the states around it."""

    def __init__(self, owner: Reconstruction, inputs: LayerInputs, chunk: int) -> None:
        self._owner, self._inputs, self._options = owner, inputs, owner.options
        self._widths, self._weights = inputs.shape, inputs.weights
        self._unit_size = self._widths.heads * owner.measurement.shape.head_dim // self._widths.head_units
        self._train, self._held = split(owner.measurement.size[0], self._options.held_back, chunk)
        self._known: dict[Role, _Sums] = {}
        self._record = LayerRecord()
        self._stages = StageTimer(self._record.seconds)

    def fold(self, stored: Weights, after: LayerShape) -> Folded:
        """The layer at widths ``after``, in the dtypes of ``stored`` or the one that is asked for."""
        folded: dict[Role, Tensor] = {}
        if after.heads != self._widths.heads:
            folded.update(self._attention(after))
        if after.intermediate != self._widths.intermediate:
            folded.update(self._mlp(after.intermediate))
        chosen = self._owner.config.dtype
        dtypes = {role: stored[role].dtype if chosen == "auto" else getattr(torch, chosen) for role in folded}
        rounded = {role: tensor.to(dtypes[role]) for role, tensor in folded.items()}
        return {**stored, **rounded}, self._record

    def head_order(self, keep: int) -> Elimination:
        """Order in which head units (KV groups with their query heads, or query heads under MQA) go."""

        def eliminate() -> Elimination:
            sums, rows = self._sums("o").whole, self._weights["o"].T
            metric = self._metric(sums, "heads")
            seen = rows if metric is None else rows.to(metric) @ metric
            return eliminate_blocks(sums, seen, keep, self._unit_size, SELECTION_RIDGE)

        return self._owner.order(self._inputs.index, "heads", keep, eliminate)

    def neuron_order(self, keep: int) -> Elimination:
        """Order in which neurons go."""

        def eliminate() -> Elimination:
            sums, rows = self._sums("down").whole, self._weights["down"].T
            metric = self._options.metric if self._options.importance is None else self._metric(sums, "neurons")
            return eliminate_units(sums, rows, keep, SELECTION_RIDGE, metric=metric)

        return self._owner.order(self._inputs.index, "neurons", keep, eliminate)

    def _metric(self, sums: ActivationSums, part: Part) -> Tensor | None:
        """Metric of what a part of the layer gives: weighted squares become nats of a row; on the sums' device."""
        importance, (sequences, tokens) = self._options.importance, self._owner.measurement.size
        if importance is None:
            return None
        weight = sums.weight / (sequences * tokens)
        return importance.metric(self._inputs.index, part).to(sums.gram.device) / math.sqrt(max(2 * weight, 1e-30))

    def _sums(self, consumer: Role) -> _Sums:
        """Sums over what a consumer reads."""
        if consumer not in self._known:
            self._known = {}  # those of one consumer at a time: they are the largest tensors of all
            rows = self._inputs.heads if consumer == "o" else self._neurons
            train = activation_sums(map(rows, self._train))
            whole = train + activation_sums(map(rows, self._held)) if self._held else train
            if consumer == "down" and self._options.gaussian:
                train, whole = map(self._with_gaussian, (train, whole))
            self._known[consumer] = _Sums(train, whole)
            self._stages.lap("measure")
        return self._known[consumer]

    def _neurons(self, part: slice) -> tuple[Tensor, Tensor]:
        x, _, w = self._inputs.mlp(part)
        return self._inputs.neurons(x), w

    def _with_gaussian(self, sums: ActivationSums) -> ActivationSums:
        """Mix in rows x ~ N(0, gain²), weighted to a share of the Gram's trace."""
        share, gain = self._options.gaussian, self._weights["post_norm"]
        generator = torch.Generator().manual_seed(self._owner.config.seed + self._inputs.index)
        x = torch.randn(_GAUSSIAN_ROWS, len(gain), generator=generator).to(gain.device) * gain
        extra = activation_sums([(self._inputs.neurons(x), torch.ones(len(x), device=gain.device))])
        return sums + extra.scaled(share / (1 - share) * sums.trace / max(extra.trace, 1e-30))

    def _attention(self, after: LayerShape) -> dict[Role, Tensor]:
        kept = self.head_order(self._widths.units_in(after)).kept
        queries = _features(kept, self._unit_size)
        picked = {"q": queries, "q_bias": queries}
        if self._widths.grouped:
            keys = _features(kept, self._owner.measurement.shape.head_dim)
            picked.update(k=keys, v=keys, k_bias=keys, v_bias=keys)
        folded = {role: self._weights[role][rows] for role, rows in picked.items() if role in self._weights}
        refitted = self._refit("o", queries, self._head_rows)
        self._record.attention = {"before": self._widths.heads, "after": after.heads, **refitted.record}
        self._stages.lap("select")
        return folded | refitted.whole

    def _mlp(self, width: int) -> dict[Role, Tensor]:
        kept = self.neuron_order(width).kept
        producers = [role for role in ("gate", "up", "gate_bias", "up_bias") if role in self._weights]
        folded = {role: self._weights[role][kept] for role in producers}
        refitted = self._refit("down", kept, self._mlp_rows)
        self._known = {}  # the refinement needs the room
        self._stages.lap("select")
        record = {"before": self._widths.intermediate, "after": width, **refitted.record}
        self._record.mlp = record
        refinement, seed = self._options.refinement, mixed_seed(self._owner.config.seed, self._inputs.index)
        if refinement.steps and self._held:
            start = folded | refitted.train
            refined, errors = refine(start, self._inputs, self._train, self._held, refinement, seed)
            record["refined_errors"] = errors
            self._stages.lap("refine")
            if errors[1] < errors[0]:
                record["error_after_repair"] = errors[1]
                return refined
        return folded | refitted.whole

    def _head_rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        heads, w = self._inputs.heads(part)
        return heads, F.linear(heads, self._weights["o"], self._weights.get("o_bias")), w

    def _mlp_rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        x, y, w = self._inputs.mlp(part)
        return self._inputs.neurons(x), y, w

    def _refit(self, consumer: Role, kept: Tensor, rows: Callable[[slice], tuple[Tensor, Tensor, Tensor]]) -> _Refitted:
        """Refit a consumer at the ridge that held-back rows like best.

        Args:
            consumer: its role.
            kept: features that stay.
            rows: of some sequences: all features (t, n), targets (t, d) and row weights (t,).
        """
        sums, dense = self._sums(consumer), self._weights[consumer].T
        bias = self._weights.get(f"{consumer}_bias")

        def fitted(over: ActivationSums, ridge: float) -> tuple[Tensor, Tensor | None]:
            new = refit(over if bias is None else over.centred(), dense, kept, ridge)
            return new, None if bias is None else refit_bias(over, dense, kept, new, bias)

        index = kept.to(dense.device)
        candidates = [(dense[index], bias), *(fitted(sums.train, ridge) for ridge in RIDGES)]
        errors = _errors(candidates, map(rows, self._held or self._train), index)
        best = min(range(len(RIDGES)), key=lambda i: errors[i + 1])
        record = {"ridge": RIDGES[best], "error_before_repair": errors[0], "error_after_repair": errors[best + 1]}
        whole = fitted(sums.whole, RIDGES[best])
        return _Refitted(_consumer(consumer, *candidates[best + 1]), _consumer(consumer, *whole), record)


def _errors(
    candidates: Sequence[tuple[Tensor, Tensor | None]], rows: Iterable[tuple[Tensor, Tensor, Tensor]], kept: Tensor
) -> list[float]:
    """Relative squared error on some rows of consumers (k, d) with biases."""
    wrong, total = [0.0] * len(candidates), 0.0
    for features, targets, w in rows:
        total += float((targets.square().sum(1) * w).double().sum())
        some = features[:, kept]
        for number, (consumer, bias) in enumerate(candidates):
            rest = targets - some @ consumer - (0 if bias is None else bias)
            wrong[number] += float((rest.square().sum(1) * w).double().sum())
    return [relative_error(value, total) for value in wrong]


def _consumer(role: Role, rows: Tensor, bias: Tensor | None) -> dict[Role, Tensor]:
    return {role: rows.T.contiguous()} | ({} if bias is None else {f"{role}_bias": bias})


def _features(units: Tensor, size: int) -> Tensor:
    return (units[:, None] * size + torch.arange(size)).flatten()
