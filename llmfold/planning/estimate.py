"""What a fold will take on this machine: peak memory, disk and time, before anything is done."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmfold.architectures import LayerShape, tensor_name
from llmfold.checkpoint import partial_folder
from llmfold.clustering import gram
from llmfold.config import FoldConfig
from llmfold.planning.limits import available_memory, check_disk, check_memory, room
from llmfold.planning.plan import FoldPlan

BASE_BYTES = 350_000_000
"""Anonymous memory of Python, torch and transformers themselves, measured on Linux."""
DISK_BYTES_PER_SECOND = 500e6
MERGE_SECONDS_PER_ROW = 2e-8
"""Ward updates one row per merge; measured at n = 11,008."""
SECONDS_PER_ENTRY = 3e-8
"""Distances, their spanning tree, inertia and merging together, by entry of the Gram; measured at n = 11,008."""
MEMORY_BYTES_PER_SECOND = 10e9
TOKENS_PER_SEQUENCE = 256
PANEL_BYTES = 200_000_000
"""What clustering holds beside its matrix."""
CACHE_BYTES = 4_000_000_000
"""Bound on the key/value cache of sampling."""
CHECKED_IN_MEMORY_BYTES = 300_000_000
"""Below this size the reload check holds the model in memory; above, accelerate reads it layer by layer from disk."""
CHECKED_VOCABULARY = 16_384
"""Rows of the output embedding that the reload check's own forward pass multiplies at once."""
MERGING = ("paper", "random", "magnitude")
_PROBE = 768
_SAMPLED_LENGTHS = 2
"""Tokens sampled for one that is measured on: sequences are windows of documents of up to twice their length."""
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


def matmul_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of Gram products on this CPU when it is free, from a short probe.

    The time of the processor counts, so that what else runs on the machine does not.
    """
    rows = torch.ones(_PROBE, 4 * _PROBE, dtype=dtype)
    spent = []
    for _ in range(3):
        start = time.process_time()
        gram([rows])
        spent.append(time.process_time() - start)
    return 8 * _PROBE**3 * torch.get_num_threads() / max(min(spent), 1e-6)


def _gram_flops(rows: int, dimensions: int, kept: int) -> float:
    return float(rows) * rows * dimensions if kept < rows else 0.0


def estimate(plan: FoldPlan) -> Estimate:
    """Estimate the cost of ``plan`` from its shapes and the machine's own matmul rate."""
    shape = plan.before
    flops = merges = entries = 0.0
    for a, b in zip(plan.before.layers, plan.after.layers, strict=True):
        units = _units(a)
        flops += _gram_flops(a.intermediate, 3 * shape.hidden, b.intermediate)
        flops += _gram_flops(units, 2 * (a.heads + a.kv_heads) // units * shape.head_dim * shape.hidden, _units(b))
        merges += (a.intermediate - b.intermediate) * a.intermediate
        entries += a.intermediate**2 if b.intermediate < a.intermediate else 0
    if _measures(plan):
        flops, merges, entries = _measuring(plan).flops, 0.0, 0.0
    seconds = (
        flops / matmul_rate(torch.float32 if _measures(plan) else plan.tensors[0].dtype)
        + merges * MERGE_SECONDS_PER_ROW
    )
    if plan.config.method == "self" and plan.folded_layers:
        seconds += _sampling_seconds(plan)
    seconds += (plan.bytes_before + plan.bytes_after) / DISK_BYTES_PER_SECOND
    return Estimate(memory_needed(plan), disk_needed(plan), round(seconds, 1))


def check_machine(plans: Sequence[FoldPlan], *, on_host: bool, processes: int = 1) -> None:
    """Refuse what this machine cannot do.

    Args:
        plans: folds of one run, whose outputs lie on one disk.
        on_host: whether layers are folded in the host's memory, not on an accelerator.
        processes: how many of the run are on this machine.

    Raises:
        OutputError: its disk or its memory cannot suffice.
    """
    folders = [partial_folder(plan.config.output_path.absolute()) for plan in plans]
    check_disk(folders, sum(map(disk_needed, plans)))
    if on_host:
        check_memory(max(memory_needed(plan, processes) for plan in plans), available_memory())


def disk_needed(plan: FoldPlan) -> int:
    """Bytes of the output and of hidden states that wait on disk."""
    return plan.bytes_after + (_measuring(plan).state_bytes if _measures(plan) else 0)


def memory_needed(plan: FoldPlan, processes: int = 1) -> int:
    """Peak anonymous memory of the host: of folding a layer, of sampling in one of the processes, or of the check."""
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
            sampling = _held_while_sampling(plan) + _cache_bytes(plan)
    layer = max(map(plan.after.layer_parameters, plan.after.layers))
    # Of the passes of the check, stock float32 takes most; llmfold's own may run beside it, the stored dtype is mapped.
    check = 4 * 2 * max(shape.vocabulary * shape.hidden, layer)
    check += 4 * (layer + CHECKED_VOCABULARY * shape.hidden) if processes > 1 else 0
    small = plan.bytes_after < CHECKED_IN_MEMORY_BYTES or plan.config.verify != "full"
    folding = processes if plan.config.shared else 1
    layers = folding * (work_area + folded + PANEL_BYTES * bool(work_area))
    return processes * BASE_BYTES + max(layers, sampling, 0 if small else check)


def _measures(plan: FoldPlan) -> bool:
    return plan.config.method not in MERGING and bool(plan.folded_layers)


def cache_limit(config: FoldConfig, device: int | str) -> int:
    """Bytes that the key/value cache may take on a device: half of what the model and the cache may have together."""
    limits = config.memory_limits
    limit = limits.get(device, limits.get("all"))
    return CACHE_BYTES if limit is None else min(CACHE_BYTES, limit // 2)


def _cache_bytes(plan: FoldPlan) -> int:
    """Bytes of the key/value cache of sampling on the host."""
    sequences, length = _tokens(plan)
    length *= _SAMPLED_LENGTHS
    whole = sum(2 * 4 * layer.kv_heads * plan.before.head_dim for layer in plan.before.layers) * sequences * length
    return min(cache_limit(plan.config, "cpu"), whole)


def _held_while_sampling(plan: FoldPlan) -> int:
    """Bytes of the model that the host holds while it samples, in what the cache leaves; the rest is offloaded."""
    left = room("cpu", available_memory(), plan.config.memory_limits) - _cache_bytes(plan)
    return min(plan.bytes_before, max(left, 0))


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
    if plan.config.method == "llm-pruner":  # goes back through all layers
        states += 4 * (depth + 1) * tokens * hidden
    return _Measuring(2.0 * tokens * decoder * passes + 2 * grams, _GRAMS * 8 * widest**2, states)


def _sampling_seconds(plan: FoldPlan) -> float:
    """Every position of all documents reads the whole model once: from memory, or from disk where it does not fit."""
    _, length = _tokens(plan)
    fits = plan.bytes_before <= _held_while_sampling(plan)
    rate = MEMORY_BYTES_PER_SECOND if fits else DISK_BYTES_PER_SECOND
    return _SAMPLED_LENGTHS * length * plan.bytes_before / rate


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
