"""Folding as reconstruction: a narrower layer gives what the layer gave, on the inputs that the dense model gives it.

Every layer is fitted alone. To have it correct what earlier layers got wrong was measured to hurt: their errors add
up, and the correction is mostly noise that is fitted (eval/results/tried.md). So there is one stream of hidden states,
the dense model's, and layers are independent.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import Independent, ReadLayer, Weights
from llmfold.methods.dense import DenseStates, LayerInputs, Measurement
from llmfold.methods.reconstruction.importance import Importance, Part
from llmfold.models import LayerShape, Role
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.planning.sensitivity import kept_neurons
from llmfold.repair.least_squares import ActivationSums, activation_sums, refit, refit_bias
from llmfold.repair.refine import Refinement, refine
from llmfold.runtime.hidden_states import CHUNK, STATE_FOLDER, chunks, stored_tensors
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
        seed: of everything random.
        dtype: of the tensors written; None keeps each tensor's own.
    """

    held_back: float = 0.125
    refinement: Refinement = field(default_factory=Refinement)
    gaussian: float = 0.0
    metric: Tensor | None = None
    importance: Importance | None = None
    seed: int = 0
    dtype: torch.dtype | None = None


class Reconstruction(Independent):
    """``--method self``, ``calibrated`` and ``weights``: they differ in the hidden states that they measure on."""

    def __init__(self, on: Measurement, options: ReconstructionOptions, facts: dict[str, Any]) -> None:
        """Set up; nothing is computed yet.

        Args:
            on: hidden states to measure on.
            options: settings.
            facts: what is known of the states, for the report.
        """
        self.on, self.options, self._facts = on, options, facts
        self._states = DenseStates(on)
        self._chunk = CHUNK

    def ready(self, read_layer: ReadLayer, say: Callable[[str], None]) -> None:
        """Find out what directions of the residual stream matter, if units are selected by that."""
        if self.options.importance is not None:
            self.options.importance.ready(read_layer, say)

    def measure(self, read_layer: ReadLayer, ratio: float, say: Callable[[str], None]) -> Sensitivities:
        """Curves of all layers: the rise of the ridge objective along the backward elimination of neurons and heads.

        Errors count in nats where it is known what directions matter, else relative to the residual stream that they
        disturb, since the next RMSNorm divides by it; that makes those of different layers and parts comparable. Each
        process eliminates in layers of its own; the order found is kept, and :meth:`fold` takes it up.

        Args:
            read_layer: tensors of a layer by role.
            ratio: about the fraction that will go, which bounds how far curves reach.
            say: told of every layer.
        """
        on = self.on
        for group in self.groups(range(len(on.shape.layers))):
            say(f"layer {group[0]}: measure")
            self.prepare(group, read_layer)
            for index in on.team.shard(group):
                inputs = self._states.around(index, on.wide(read_layer(index)))
                measured = partial(self._measured, inputs, kept_neurons(on.shape.layers[index].intermediate, ratio))
                on.team.with_oom_retry(measured, self._chunk, f"layer {index}")
        self._states.close()
        rows = on.size[0] * on.size[1] * on.shape.hidden
        layers = []
        for index in range(len(on.shape.layers)):
            heads, neurons = (_read_order(self._order_file(index, part)) for part in ("heads", "neurons"))
            layers.append(LayerCurves(_curve(neurons.costs, rows), _curve(heads.costs, rows)))
        return Sensitivities(layers)

    def _measured(self, inputs: LayerInputs, keep: int, chunk: int) -> None:
        layer = _Layer(self, inputs, chunk)
        layer.head_order(1)
        layer.neuron_order(keep)

    def groups(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Layers (ascending) whose states are at hand together: one for each process."""
        count = self.on.team.count
        return (layers[start : start + count] for start in range(0, len(layers), count))

    def prepare(self, layers: Sequence[int], read_layer: ReadLayer) -> None:
        """Move the dense states to a group of layers; all processes call this alike."""
        move = partial(self._states.move_to, layers, read_layer)
        _, self._chunk = self.on.team.with_oom_retry(move, self._chunk, f"layer {layers[0]}")

    def fold(
        self, index: int, weights: Weights, before: LayerShape, after: LayerShape
    ) -> tuple[dict[Role, Tensor], LayerRecord]:
        """Choose units, refit their consumers, and refine what is left of the MLP."""
        if before == after:
            return dict(weights), LayerRecord()
        inputs = self._states.around(index, self.on.wide(dict(weights)))

        def attempt(chunk: int) -> tuple[dict[Role, Tensor], LayerRecord]:
            return _Layer(self, inputs, chunk).fold(weights, after)

        return self.on.team.with_oom_retry(attempt, self._chunk, f"layer {index}")[0]

    def summary(self) -> dict[str, Any]:
        """What the states are, for the report."""
        return self._facts

    def _order_file(self, index: int, part: str) -> Path:
        return self.on.work / STATE_FOLDER / f"order-{index:05d}-{part}.safetensors"

    def order(self, index: int, part: str, keep: int, eliminate: Callable[[], Elimination]) -> Elimination:
        """Elimination down to ``keep``, from the file of a longer one where that was found before."""
        path = self._order_file(index, part)
        if not path.exists():
            found = eliminate()
            stored_tensors(path, lambda: _order_tensors(found))
        known = _read_order(path)
        wanted = len(known.kept) + len(known.removed) - keep
        if len(known.removed) < wanted:
            path.unlink()
            return self.order(index, part, keep, eliminate)
        units = len(known.kept) + len(known.removed)
        return Elimination.of(units, known.removed[:wanted], known.costs[:wanted])


def _order_tensors(order: Elimination) -> dict[str, Tensor]:
    return {"kept": order.kept, "removed": order.removed, "costs": order.costs}


def _read_order(path: Path) -> Elimination:
    return Elimination(**load_file(path))


def _curve(costs: Tensor, rows: int) -> list[float]:
    return [0.0, *(costs.cumsum(0) / rows).tolist()]


def split(sequences: int, held_back: float, chunk: int = CHUNK) -> tuple[list[slice], list[slice]]:
    """Chunks of sequences to fit on, and chunks to judge on; a single block of ``CHUNK`` is only fitted on."""
    blocks = -(-sequences // CHUNK)
    held = max(1, round(blocks * held_back)) if blocks > 1 else 0
    first_held = (blocks - held) * CHUNK if held else sequences
    parts = list(chunks(sequences, chunk))
    return [p for p in parts if p.start < first_held], [p for p in parts if p.start >= first_held]


@dataclass(frozen=True)
class _Sums:
    """Sums over the rows to fit on, and over all rows."""

    train: ActivationSums
    whole: ActivationSums


@dataclass(frozen=True)
class _Refitted:
    """A consumer by role, refit on the rows to fit on and on all rows, and what the report says of it."""

    train: dict[Role, Tensor]
    whole: dict[Role, Tensor]
    record: dict[str, Any]


class _Layer:
    """One layer on the states around it."""

    def __init__(self, owner: Reconstruction, inputs: LayerInputs, chunk: int) -> None:
        self._owner, self._in, self._options = owner, inputs, owner.options
        self._shape, self._widths = owner.on.shape, owner.on.shape.layers[inputs.index]
        self._train, self._held = split(owner.on.size[0], self._options.held_back, chunk)
        self._known: dict[str, _Sums] = {}
        self._record = LayerRecord()
        self._clock = time.perf_counter()

    def fold(self, stored: Weights, after: LayerShape) -> tuple[dict[Role, Tensor], LayerRecord]:
        """The layer at widths ``after``, in the dtypes of ``stored`` or the one that is asked for."""
        folded: dict[Role, Tensor] = {}
        if after.heads != self._widths.heads:
            folded.update(self._attention(after))
        if after.intermediate != self._widths.intermediate:
            folded.update(self._mlp(after.intermediate))
        rounded = {role: t.to(self._options.dtype or stored[role].dtype) for role, t in folded.items()}
        return {**stored, **rounded}, self._record

    def head_order(self, keep: int) -> Elimination:
        """Order in which head units (KV groups with their query heads, or query heads under MQA) go."""

        def eliminate() -> Elimination:
            sums, units = self._sums("o"), self._widths.head_units
            size = self._widths.heads * self._shape.head_dim // units
            rows, metric = self._in.weights["o"].T, self._metric(sums.whole, "heads")
            seen = rows if metric is None else rows.to(metric) @ metric
            return eliminate_blocks(sums.whole, seen, keep, size, SELECTION_RIDGE)

        return self._owner.order(self._in.index, "heads", keep, eliminate)

    def neuron_order(self, keep: int) -> Elimination:
        """Order in which neurons go."""

        def eliminate() -> Elimination:
            rows, sums = self._in.weights["down"].T, self._sums("down").whole
            metric = self._options.metric if self._options.importance is None else self._metric(sums, "neurons")
            return eliminate_units(sums, rows, keep, SELECTION_RIDGE, metric=metric)

        return self._owner.order(self._in.index, "neurons", keep, eliminate)

    def _metric(self, sums: ActivationSums, part: Part) -> Tensor | None:
        """Metric of what a part of the layer gives: weighted squares become nats of a row; on the sums' device."""
        importance, (sequences, tokens) = self._options.importance, self._owner.on.size
        if importance is None:
            return None
        weight = sums.weight / (sequences * tokens)
        return importance.metric(self._in.index, part).to(sums.gram.device) / math.sqrt(max(2 * weight, 1e-30))

    def _time(self, stage: str) -> None:
        now = time.perf_counter()
        self._record.seconds[stage] = self._record.seconds.get(stage, 0.0) + now - self._clock
        self._clock = now

    def _sums(self, consumer: Role) -> _Sums:
        """Sums over what a consumer reads."""
        if consumer not in self._known:
            self._known = {}  # those of one consumer at a time: they are the largest tensors of all
            rows = self._in.heads if consumer == "o" else self._neurons
            train = activation_sums(map(rows, self._train))
            whole = train + activation_sums(map(rows, self._held)) if self._held else train
            if consumer == "down" and self._options.gaussian:
                train, whole = map(self._with_gaussian, (train, whole))
            self._known[consumer] = _Sums(train, whole)
            self._time("measure")
        return self._known[consumer]

    def _neurons(self, part: slice) -> tuple[Tensor, Tensor]:
        x, _, w = self._in.mlp(part)
        return self._in.neurons(x), w

    def _with_gaussian(self, sums: ActivationSums) -> ActivationSums:
        """Mix in rows x ~ N(0, gain²), weighted to a share of the Gram's trace."""
        share, gain = self._options.gaussian, self._in.weights["post_norm"]
        generator = torch.Generator().manual_seed(self._options.seed + self._in.index)
        x = torch.randn(_GAUSSIAN_ROWS, len(gain), generator=generator).to(gain.device) * gain
        extra = activation_sums([(self._in.neurons(x), torch.ones(len(x), device=gain.device))])
        return sums + extra.scaled(share / (1 - share) * _trace(sums) / max(_trace(extra), 1e-30))

    def _attention(self, after: LayerShape) -> dict[Role, Tensor]:
        kept = self.head_order(self._widths.units_in(after)).kept
        queries = _features(kept, self._widths.heads * self._shape.head_dim // self._widths.head_units)
        picked = {"q": queries, "q_bias": queries}
        if self._widths.grouped:
            keys = _features(kept, self._shape.head_dim)
            picked.update(k=keys, v=keys, k_bias=keys, v_bias=keys)
        weights = self._in.weights
        folded = {role: weights[role][rows] for role, rows in picked.items() if role in weights}
        found = self._refit("o", queries, self._head_rows)
        self._record.attention = {"before": self._widths.heads, "after": after.heads, **found.record}
        self._time("select")
        return folded | found.whole

    def _mlp(self, width: int) -> dict[Role, Tensor]:
        kept, weights = self.neuron_order(width).kept, self._in.weights
        producers: tuple[Role, ...] = ("gate", "up", "gate_bias", "up_bias")
        folded = {role: weights[role][kept] for role in producers if role in weights}
        found = self._refit("down", kept, self._mlp_rows)
        self._known = {}  # the refinement needs the room
        self._time("select")
        record = {"before": self._widths.intermediate, "after": width, **found.record}
        self._record.mlp = record
        refinement = self._options.refinement
        if refinement.steps and self._held:
            start = folded | found.train
            refined, trace = refine(start, self._in, self._train, self._held, refinement, self._seed())
            record["refined_errors"] = trace
            self._time("refine")
            if trace[1] < trace[0]:
                record["error_after_repair"] = trace[1]
                return refined
        return folded | found.whole

    def _seed(self) -> int:
        return (self._options.seed * 1_000_003 + self._in.index) % 2**63

    def _head_rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        heads, w = self._in.heads(part)
        return heads, F.linear(heads, self._in.weights["o"], self._in.weights.get("o_bias")), w

    def _mlp_rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        x, y, w = self._in.mlp(part)
        return self._in.neurons(x), y, w

    def _refit(self, consumer: Role, kept: Tensor, rows: Callable[[slice], tuple[Tensor, Tensor, Tensor]]) -> _Refitted:
        """Refit a consumer at the ridge that held-back rows like best.

        Args:
            consumer: its role.
            kept: features that stay.
            rows: of some sequences: all features (t, n), targets (t, d) and row weights (t,).

        """
        sums, dense = self._sums(consumer), self._in.weights[consumer].T
        bias = self._in.weights.get(f"{consumer}_bias")

        def fitted(over: ActivationSums, ridge: float) -> tuple[Tensor, Tensor | None]:
            new = refit(over if bias is None else over.centred(), dense, kept, ridge)
            return new, None if bias is None else refit_bias(over, dense, kept, new, bias)

        index = kept.to(dense.device)
        candidates = [(dense[index], bias), *(fitted(sums.train, ridge) for ridge in RIDGES)]
        errors = _errors(candidates, map(rows, self._held or self._train), index)
        best = min(range(len(RIDGES)), key=lambda i: errors[i + 1])
        record = {
            "ridge": RIDGES[best],
            "error_before_repair": errors[0],
            "error_after_repair": errors[best + 1],
        }
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
    return [value / max(total, 1e-300) for value in wrong]


def _consumer(role: Role, rows: Tensor, bias: Tensor | None) -> dict[Role, Tensor]:
    return {role: rows.T.contiguous()} | ({} if bias is None else {f"{role}_bias": bias})


def _trace(sums: ActivationSums) -> float:
    return float(sums.gram.diagonal().double().sum())


def _features(units: Tensor, size: int) -> Tensor:
    return (units[:, None] * size + torch.arange(size)).flatten()
