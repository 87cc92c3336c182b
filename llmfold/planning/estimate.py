"""What a fold will take on this machine: peak memory, disk and time, before anything is done."""

import math
import time
from dataclasses import dataclass

import torch

from llmfold.architectures import LayerShape, tensor_name
from llmfold.planning.limits import available_memory
from llmfold.planning.plan import FoldPlan

BASE_BYTES = 350_000_000
"""Anonymous memory of Python, torch and transformers themselves, measured on Linux."""
DISK_BYTES_PER_SECOND = 500e6
MERGE_SECONDS_PER_ROW = 2e-8
"""Ward updates one row per merge; measured at n = 11,008."""
MEMORY_BYTES_PER_SECOND = 10e9
TOKENS_PER_SEQUENCE = 256
IN_MEMORY_SHARE = 0.8
"""Share of the free memory that a model may fill while tokens are sampled from it."""
PANEL_BYTES = 200_000_000
"""What clustering holds beside its matrix."""
SMALL_BYTES = 300_000_000
"""Below this the reload check's own model does not count."""
MERGING = ("paper", "random", "magnitude")
_PROBE = 768
_PASSES = 5
"""Forward passes of a measuring fold: one that measures widths, dense and folded ones, and candidates."""
_IMPORTANCE_SEQUENCES, _IMPORTANCE_PASSES = 64, 4
"""Fisher metrics: a pass forward, and one back at about three times its cost, on some of the sequences."""
_PASSES_PER_STEP, _STEP_SEQUENCES = 20, 64
"""A Gauss-Newton step: eight conjugate-gradient iterations of over two passes, on the blocks whose turn it is."""
_PASSES_PER_SOLUTION = 3
"""The least squares and the judgement after every step, on all blocks."""
_GRAMS = 6
_LONG = 3600


@dataclass(frozen=True)
class Estimate:
    """Peak anonymous memory in bytes, disk in bytes, and time in seconds for the whole fold without the check."""

    memory_bytes: int
    disk_bytes: int
    seconds: float


def matmul_rate() -> float:
    """Floating-point operations per second of a float32 product on this CPU, from a probe of some milliseconds."""
    a = torch.ones(_PROBE, _PROBE)
    a @ a
    start = time.perf_counter()
    a @ a
    return 2 * _PROBE**3 / (time.perf_counter() - start)


def _gram_flops(rows: int, dimensions: int, kept: int) -> float:
    return float(rows) * rows * dimensions if kept < rows else 0.0


def estimate(plan: FoldPlan) -> Estimate:
    """Estimate the cost of ``plan`` from its shapes and the machine's own matmul rate."""
    shape = plan.before
    flops = merges = 0.0
    for a, b in zip(plan.before.layers, plan.after.layers, strict=True):
        units = _units(a)
        flops += _gram_flops(a.intermediate, 3 * shape.hidden, b.intermediate)
        flops += _gram_flops(units, 2 * (a.heads + a.kv_heads) // units * shape.head_dim * shape.hidden, _units(b))
        merges += (a.intermediate - b.intermediate) * a.intermediate
    if _measures(plan):
        flops, merges = _measuring(plan).flops, 0.0
    seconds = flops / matmul_rate() + merges * MERGE_SECONDS_PER_ROW
    if plan.config.method == "self" and plan.folded_layers:
        seconds += _sampling_seconds(plan)
    seconds += (plan.bytes_before + plan.bytes_after) / DISK_BYTES_PER_SECOND
    return Estimate(memory_needed(plan), disk_needed(plan), round(seconds, 1))


def disk_needed(plan: FoldPlan) -> int:
    """Bytes of the output and of hidden states that wait on disk."""
    return plan.bytes_after + (_measuring(plan).state_bytes if _measures(plan) else 0)


def memory_needed(plan: FoldPlan) -> int:
    """Peak anonymous memory of the host: of folding a layer, of sampling, or of the reload check."""
    shape, matrices = plan.before, 2 if plan.config.cluster == "hartigan" else 1
    work_area = folded = 0
    sizes = {s.name: s.nbytes for s in plan.tensors}
    for i, (a, b) in enumerate(zip(plan.before.layers, plan.after.layers, strict=True)):
        if a != b:
            work_area = max(work_area, matrices * 4 * a.intermediate**2)
            folded = max(folded, sum(sizes[tensor_name(i, role)] for role, _ in shape.layer_roles(a)))
    sampling = 0
    if _measures(plan):
        work_area = max(work_area, _measuring(plan).work_area)
        folded += 2 * 4 * max(map(shape.layer_parameters, shape.layers))
        if plan.config.method == "self":
            sampling = min(plan.bytes_before, _room(plan))
    check = 4 * max(shape.vocabulary * shape.hidden, *map(plan.after.layer_parameters, plan.after.layers))
    small = plan.bytes_after < SMALL_BYTES or plan.config.verify != "full"
    return BASE_BYTES + max(work_area + folded + PANEL_BYTES * bool(work_area), sampling, 0 if small else 2 * check)


def _measures(plan: FoldPlan) -> bool:
    return plan.config.method not in MERGING and bool(plan.folded_layers)


def _room(plan: FoldPlan) -> int:
    """Bytes of the model that sampling may hold on the host."""
    limits = plan.config.memory_limits
    return min(int(IN_MEMORY_SHARE * available_memory()), limits.get("cpu", limits.get("all", plan.bytes_before)))


@dataclass(frozen=True)
class _Measuring:
    """Cost of a method that measures: floating-point operations, bytes of its Gram matrices and of hidden states."""

    flops: float
    work_area: int
    state_bytes: int


def _tokens(plan: FoldPlan) -> tuple[int, int]:
    """Sequences and tokens per sequence by default or as asked."""
    length = plan.config.sequence_length or TOKENS_PER_SEQUENCE
    widest = max(max(layer.intermediate, layer.heads * plan.before.head_dim) for layer in plan.before.layers)
    return plan.config.num_samples or max(128, 4 * widest // length), length


def _measuring(plan: FoldPlan) -> _Measuring:
    sequences, length = _tokens(plan)
    tokens, decoder, hidden = sequences * length, plan.before.decoder_parameters, plan.before.hidden
    refits = plan.config.method in ("self", "calibrated")
    steps = 4 if plan.config.refine is None and refits else plan.config.refine or 0
    at_once = min(1.0, _STEP_SEQUENCES / sequences)
    weighed = min(sequences, _IMPORTANCE_SEQUENCES) if refits else 0
    passes = _PASSES + steps * (_PASSES_PER_STEP * at_once + _PASSES_PER_SOLUTION)
    passes += _IMPORTANCE_PASSES * weighed / sequences
    grams = sum(
        2.0 * tokens * (a.intermediate**2 + (a.heads * plan.before.head_dim) ** 2) + 4.0 * a.intermediate**3
        for a in plan.before.layers
    )
    widest = max(layer.intermediate for layer in plan.before.layers)
    depth = len(plan.before.layers)
    states = 16 * tokens * hidden
    if refits:
        states += 4 * (depth + 1) * weighed * length * hidden + 8 * depth * hidden**2
    return _Measuring(2.0 * tokens * decoder * passes + 2 * grams, _GRAMS * 8 * widest**2, states)


def _sampling_seconds(plan: FoldPlan) -> float:
    """Every position of all sequences reads the whole model once: from memory, or from disk where it does not fit."""
    _, length = _tokens(plan)
    rate = MEMORY_BYTES_PER_SECOND if plan.bytes_before <= _room(plan) else DISK_BYTES_PER_SECOND
    return length * plan.bytes_before / rate


def advice(plan: FoldPlan, seconds: float) -> str | None:
    """What to do instead where a method takes hours on this machine."""
    if plan.config.method in ("self", "calibrated") and seconds > _LONG:
        return "that is long: --refine 0 is several times quicker, and --method weights does not sample"
    return None


def _units(layer: LayerShape) -> int:
    return layer.kv_heads if layer.kv_heads > 1 else layer.heads


def human_seconds(seconds: float) -> str:
    """Render a duration for people: ``42 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
