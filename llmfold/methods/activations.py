"""Folding as projection: units are chosen and their consumer refit by what the layer does to hidden states.

Two streams run side by side, of the dense model and of the folded one, so every layer is repaired on what it will
really see and also corrects what earlier layers got wrong. Only Gram matrices of the activations are kept.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.architectures import FINAL_NORM, LayerShape, Role
from llmfold.folding.layer import LayerRecord
from llmfold.methods.base import Weights
from llmfold.methods.carried import CarriedStates
from llmfold.methods.importance import Importance
from llmfold.methods.measure import Measurement, measure, row_weight
from llmfold.methods.output import ROWS, Output
from llmfold.methods.streams import CHUNK, chunks, gather, heads_of
from llmfold.planning import Sensitivities
from llmfold.repair.final_gain import Pair, refit_gain
from llmfold.repair.least_squares import NormalEquations, accumulate, solve
from llmfold.repair.refine import RefineOptions, Rows, refine_gate_up
from llmfold.selection.candidates import Candidate, head_candidates, neuron_candidates
from llmfold.streaming.forward import mlp_neurons, rms_norm
from llmfold.streaming.states import HiddenStates, read, write

GAIN_SEQUENCES = 64
"""Sequences to refit the final gain on: it has as many numbers as the residual stream is wide."""


@dataclass(frozen=True)
class ActivationOptions:
    """Settings of the projection.

    Attributes:
        ridge: of every least-squares problem, as a fraction of the mean diagonal of its Gram.
        held_back: fraction of sequences on which candidates and refinements are judged.
        refine: settings of the Gauss-Newton refit; zero steps leave the closed form alone.
        gaussian: share of a Gram from x ~ N(0, gain²) mixed in, for directions that the rows lack.
        metric: (hidden, m) map of outputs whose squared norm selects units, or None.
        importance: gives every layer a metric of its own, in which neurons are selected and refined.
        output: reads the end of the model, to refit its final gain; None leaves the gain alone.
        seed: of the Gaussian rows.
        dtype: of the tensors written; None keeps each tensor's own.
    """

    ridge: float = 1e-3
    held_back: float = 0.125
    refine: RefineOptions = field(default_factory=RefineOptions)
    gaussian: float = 0.0
    metric: Tensor | None = None
    importance: Importance | None = None
    output: Callable[[], Output] | None = None
    seed: int = 0
    dtype: torch.dtype | None = None


class ActivationFolder:
    """Folds layers by their activations on one stream."""

    def __init__(self, on: Measurement, options: ActivationOptions, facts: dict[str, Any]) -> None:
        """Set up; nothing is computed yet.

        Args:
            on: hidden states to measure on.
            options: settings.
            facts: what is known of the states, for the report.
        """
        self.on, self.options, self._facts = on, options, facts
        self.carried = CarriedStates(on)
        self.chunk = CHUNK
        self._drifted = False

    def start(self, first_layer: int, *, drifted: bool) -> None:
        """Write the first states, or open those that an interrupted run left."""
        self._drifted = drifted
        self.carried.start(first_layer)

    def fold(
        self, index: int, weights: Weights, before: LayerShape, after: LayerShape
    ) -> tuple[dict[Role, Tensor], LayerRecord]:
        """Choose units, refit their consumers, and move both streams past the layer."""

        def attempt(chunk: int) -> tuple[dict[Role, Tensor], LayerRecord]:
            return _LayerStep(self, self.carried.now, index, weights, before, after, chunk).run()

        found, self.chunk = self.on.team.within_memory(attempt, self.chunk, f"layer {index}")
        self._drifted = self._drifted or before != after
        return found

    def measure(
        self, read_layer: Callable[[int], dict[Role, Tensor]], ratio: float, say: Callable[[str], None]
    ) -> Sensitivities:
        """See :func:`llmfold.methods.measure.measure`."""
        attempt = partial(measure, self.on, read_layer, self.options.ridge, ratio, self.options.metric, say)
        return self.on.team.within_memory(attempt, CHUNK, "measuring the layers")[0]

    def summary(self) -> dict[str, Any]:
        """What the states are, for the report."""
        return self._facts

    def outside(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Refit the final gain on the states after the last layer."""
        if self.options.output is None or not self._drifted:
            return {}, {}
        states, output, device = self.carried.now, self.options.output(), self.on.device
        train, held = split(self.on.size[0], self.options.held_back)

        def load(parts: list[slice]) -> Iterator[Pair]:
            for part in parts:
                streams = (
                    torch.split(read(s, part, device).flatten(0, 1), ROWS) for s in (states.folded, states.dense)
                )
                for folded, dense in zip(*streams, strict=True):
                    yield Pair(output.normed(folded), output.normed(dense))

        parts = train[: GAIN_SEQUENCES // CHUNK], (held or train)[: GAIN_SEQUENCES // CHUNK]
        gain, trace = refit_gain(output.gain, output, *(partial(load, p) for p in parts))
        return ({FINAL_NORM: gain} if len(trace) > 1 else {}), {"held_back_kl": trace}

    def flush(self) -> None:
        """Put the states after the layer on disk."""
        self.carried.flush()

    def committed(self) -> None:
        """Forget the states before the layer."""
        self.carried.committed()


def split(sequences: int, held_back: float, chunk: int = CHUNK) -> tuple[list[slice], list[slice]]:
    """Chunks of sequences to fit on, and chunks to judge on; a single block of ``CHUNK`` is only fitted on."""
    blocks = -(-sequences // CHUNK)
    held = max(1, round(blocks * held_back)) if blocks > 1 else 0
    first_held = (blocks - held) * CHUNK if held else sequences
    parts = list(chunks(sequences, chunk))
    return [p for p in parts if p.start < first_held], [p for p in parts if p.start >= first_held]


@dataclass(frozen=True)
class _Measured:
    """A candidate with the equations of its consumer: over the rows to fit on, and over those held back, if any."""

    candidate: Candidate
    train: NormalEquations
    held: NormalEquations | None

    @property
    def judged(self) -> NormalEquations:
        """Equations over the rows that candidates are judged on."""
        return self.train if self.held is None else self.held

    @property
    def all_rows(self) -> NormalEquations:
        """Equations over all rows, for the consumer that is written."""
        return self.train if self.held is None else self.train + self.held

    def error(self, ridge: float, *, bias: bool) -> float:
        """Relative squared error on the rows that judge, of the consumer that the rows to fit on give."""
        return self.judged.error(*solve(self.train, ridge, bias=bias))


def _kept(candidate: Candidate, units: Tensor, train: NormalEquations, held: NormalEquations | None) -> _Measured:
    """A candidate whose units stay as they were: its equations are part of those of all units."""
    return _Measured(candidate, train.restricted(units), None if held is None else held.restricted(units))


class _LayerStep:
    """One layer on both streams."""

    def __init__(
        self,
        owner: ActivationFolder,
        states: HiddenStates,
        index: int,
        weights: Weights,
        before: LayerShape,
        after: LayerShape,
        chunk: int,
    ) -> None:
        self._on, self._team = owner.on, owner.on.team
        self._model, self._options, self._device = owner.on.shape, owner.options, owner.on.device
        self._states, self._index, self._before, self._after = states, index, before, after
        self._stored = dict(weights)
        self._dense = {role: tensor.to(self._device, torch.float32) for role, tensor in weights.items()}
        self._context = owner.on.stream.context
        self.next = owner.carried.advance()
        self.record = LayerRecord()
        self._order = owner.on.stream.order(index, states.shape[0] * states.shape[1])
        self._chunk = chunk
        self._train, self._held = split(states.shape[0], self._options.held_back, chunk)
        self._parts = self._train + self._held
        self._clock = time.perf_counter()
        self._refit = owner._drifted or before != after

    def run(self) -> tuple[dict[Role, Tensor], LayerRecord]:
        folded = dict(self._stored)
        folded.update(self._attention())
        folded.update(self._mlp())
        return folded, self.record

    def _time(self, stage: str) -> None:
        now = time.perf_counter()
        self.record.seconds[stage] = self.record.seconds.get(stage, 0.0) + now - self._clock
        self._clock = now

    def _round(self, tensors: Weights) -> dict[Role, Tensor]:
        """What will be stored, so that later layers repair the rounding too."""
        return {role: tensor.to(self._options.dtype or self._stored[role].dtype) for role, tensor in tensors.items()}

    def _wide(self, tensors: Weights) -> dict[Role, Tensor]:
        return {**self._dense, **{role: tensor.to(self._device, torch.float32) for role, tensor in tensors.items()}}

    # ---- attention: dense stream h -> h2 (kept in the next states), folded stream f

    def _attention(self) -> dict[Role, Tensor]:
        result: dict[Role, Tensor] = {}
        if self._refit:
            result, chosen = self._fold_attention()
            if chosen is not None:
                self.record.attention = chosen
        else:
            self._team.each(self._parts, self._advance_dense_attention)
        weights = self._wide(result)
        layer = replace(self._before, heads=self._after.heads, kv_heads=self._after.kv_heads)

        def advance(part: slice) -> None:
            f = gather(self._states.folded, part, self._order, self._device)
            heads = heads_of(f, weights, layer, self._context, self._index)
            write(self.next.folded, part, f + F.linear(heads, weights["o"], weights.get("o_bias")))

        self._team.each(self._parts, advance)
        self._time("forward")
        return result

    def _advance_dense_attention(self, part: slice) -> Tensor:
        h = gather(self._states.dense, part, self._order, self._device)
        heads = heads_of(h, self._dense, self._before, self._context, self._index)
        h = h + F.linear(heads, self._dense["o"], self._dense.get("o_bias"))
        write(self.next.dense, part, h)
        return h

    def _attention_rows(self, part: slice, weights: Weights, layer: LayerShape, *, first: bool) -> Rows:
        h2 = self._advance_dense_attention(part) if first else read(self.next.dense, part, self._device)
        f = gather(self._states.folded, part, self._order, self._device)
        heads = heads_of(f, weights, layer, self._context, self._index)
        return Rows(heads.flatten(0, 1), (h2 - f).flatten(0, 1), row_weight(h2))

    def _equations(self, rows: Callable[[slice], Rows]) -> tuple[NormalEquations, NormalEquations | None]:
        train = self._on.equations(self._train, rows)
        return train, self._on.equations(self._held, rows) if self._held else None

    def _fold_attention(self) -> tuple[dict[Role, Tensor], dict[str, Any] | None]:
        train, held = self._equations(lambda part: self._attention_rows(part, self._dense, self._before, first=True))
        self._time("measure")
        bias = "o_bias" in self._stored
        candidates = head_candidates(
            self._dense, self._model, self._before, self._after, train, self._options.ridge, self._options.metric
        )
        layer = replace(self._before, heads=self._after.heads, kv_heads=self._after.kv_heads)

        def measured(candidate: Candidate) -> _Measured:
            if candidate.units is not None:
                return _kept(candidate, candidate.units, train, held)
            weights = self._wide(self._round(candidate.tensors))
            rows = partial(self._attention_rows, weights=weights, layer=layer, first=False)
            return _Measured(candidate, *self._equations(rows))

        best, record = self._choose(map(measured, candidates), "o_bias")
        weights, offset = solve(best.all_rows, self._options.ridge, bias=bias)
        result = dict(best.candidate.tensors)
        result["o"] = weights.T.float().contiguous()
        if offset is not None:
            result["o_bias"] = offset.float()
        self._time("select")
        record = {"before": self._before.heads, "after": self._after.heads, **record}
        return self._round(result), record if self._before.heads != self._after.heads else None

    # ---- MLP: dense stream h2 -> h3, folded stream f2 -> f3, both in the next states

    def _mlp(self) -> dict[Role, Tensor]:
        result: dict[Role, Tensor] = {}
        if self._refit:
            result, record = self._fold_mlp()
            if self._before.intermediate != self._after.intermediate:
                self.record.mlp = record
        else:
            self._team.each(self._parts, self._advance_dense_mlp)
        weights = self._wide(result)

        def advance(part: slice) -> None:
            f = read(self.next.folded, part, self._device)
            neurons = mlp_neurons(rms_norm(f, weights["post_norm"], self._context.eps), weights, self._context)
            write(self.next.folded, part, f + F.linear(neurons, weights["down"], weights.get("down_bias")))

        self._team.each(self._parts, advance)
        self._time("forward")
        return result

    def _advance_dense_mlp(self, part: slice) -> Tensor:
        h = read(self.next.dense, part, self._device)
        neurons = mlp_neurons(rms_norm(h, self._dense["post_norm"], self._context.eps), self._dense, self._context)
        h = h + F.linear(neurons, self._dense["down"], self._dense.get("down_bias"))
        write(self.next.dense, part, h)
        return h

    def _mlp_inputs(self, part: slice, *, first: bool = False) -> Rows:
        h3 = self._advance_dense_mlp(part) if first else read(self.next.dense, part, self._device)
        f = read(self.next.folded, part, self._device)
        x = rms_norm(f, self._dense["post_norm"], self._context.eps)
        return Rows(x.flatten(0, 1), (h3 - f).flatten(0, 1), row_weight(h3))

    def _mlp_rows(self, part: slice, weights: Weights, *, first: bool = False) -> Rows:
        x, y, w = self._mlp_inputs(part, first=first)
        return Rows(mlp_neurons(x, weights, self._context), y, w)

    def _fold_mlp(self) -> tuple[dict[Role, Tensor], dict[str, Any]]:
        train, held = self._equations(lambda part: self._mlp_rows(part, self._dense, first=True))
        train = self._with_gaussian(train)
        self._time("measure")
        bias = "down_bias" in self._stored
        narrowed = self._before.intermediate != self._after.intermediate
        metric = self._options.metric
        if self._options.importance is not None and narrowed:
            metric = self._options.importance.metric(self._index)
            self._time("importance")
        candidates = neuron_candidates(self._dense, self._after.intermediate, train, self._options.ridge, metric)
        measured = (_kept(c, c.units, train, held) for c in candidates if c.units is not None)
        best, record = self._choose(measured, "down_bias")
        del train, held, measured  # Grams of all units: the refit needs the room
        self._time("select")
        result = dict(best.candidate.tensors)
        record = {"before": self._before.intermediate, "after": self._after.intermediate, **record}
        if self._options.refine.steps and self._held and narrowed:
            result, trace = self._refine(result, bias, metric)
            record["refined_errors"] = trace
            if len(trace) > 1:
                rounded = self._wide(self._round(result))
                best = _Measured(best.candidate, *self._equations(lambda part: self._mlp_rows(part, rounded)))
                record["error_after_repair"] = best.error(self._options.ridge, bias=bias)
            self._time("refine")
        weights, offset = solve(best.all_rows, self._options.ridge, bias=bias)
        result["down"] = weights.T.float().contiguous()
        if offset is not None:
            result["down_bias"] = offset.float()
        return self._round(result), record

    def _with_gaussian(self, equations: NormalEquations) -> NormalEquations:
        """Mix in rows x ~ N(0, gain²) through the dense MLP, weighted to a share of the Gram's trace."""
        share = self._options.gaussian
        if not share:
            return equations
        generator = torch.Generator().manual_seed(self._options.seed + self._index)
        gain = self._dense["post_norm"]
        x = torch.randn(8192, len(gain), generator=generator).to(self._device) * gain
        a = mlp_neurons(x, self._dense, self._context)
        y = F.linear(a, self._dense["down"], self._dense.get("down_bias"))
        extra = accumulate([(a, y, torch.ones(len(a), device=self._device))])
        return equations + extra.scaled(share / (1 - share) * equations.trace / extra.trace)

    def _refine(
        self, result: dict[Role, Tensor], bias: bool, metric: Tensor | None
    ) -> tuple[dict[Role, Tensor], list[float]]:
        biased, refine = "gate_bias" in result, self._options.refine
        outputs = None if metric is None else metric.to(self._device, torch.float32)

        def load(part: slice) -> Callable[[], Rows]:
            def rows() -> Rows:
                x, y, w = self._mlp_inputs(part)
                return Rows(F.pad(x, (0, 1), value=1.0) if biased else x, y if outputs is None else y @ outputs, w)

            return rows

        def joined(role: Role) -> Tensor:
            return torch.cat((result[role], result[role + "_bias"][:, None]), 1) if biased else result[role]

        gate, up, trace = refine_gate_up(
            joined("gate"),
            joined("up"),
            [load(part) for part in self._train],
            [load(part) for part in self._held],
            self._context.activation,
            replace(refine, ridge=self._options.ridge, blocks_per_step=refine.blocks_per_step * CHUNK // self._chunk),
            bias=bias,
            team=self._team,
        )
        for role, rows in (("gate", gate), ("up", up)):
            result[role] = rows[:, :-1].contiguous() if biased else rows
            if biased:
                result[role + "_bias"] = rows[:, -1].contiguous()
        return result, trace

    # ---- shared

    def _choose(self, measured: Iterable[_Measured], bias: Role) -> tuple[_Measured, dict[str, Any]]:
        """The candidate with the smallest error, and what the report says of it; two at most are held at once."""
        errors: dict[str, float] = {}
        best: _Measured | None = None
        for found in measured:
            error = found.error(self._options.ridge, bias=bias in self._stored)
            if best is None or error < min(errors.values()):
                best = found
            errors[found.candidate.name] = error
            del found
        assert best is not None
        own = best.candidate.own
        record = {
            "chosen": best.candidate.name,
            "held_back_errors": errors,
            "error_before_repair": None if own is None else best.judged.error(own, self._dense.get(bias)),
            "error_after_repair": errors[best.candidate.name],
        }
        return best, record
