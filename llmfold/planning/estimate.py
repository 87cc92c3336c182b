"""What a fold will take on this machine: peak memory, disk and time, before anything is done."""

import math
import time
from dataclasses import dataclass

import torch

from llmfold.architectures import LayerShape, tensor_name
from llmfold.planning.plan import FoldPlan

BASE_BYTES = 400_000_000
"""Anonymous memory of Python, torch and transformers themselves, measured on Linux."""
DISK_BYTES_PER_SECOND = 500e6
MERGE_SECONDS_PER_ROW = 2e-8
"""Ward updates one row per merge; measured at n = 11,008."""
_PROBE = 768


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
    shape, matrices = plan.before, 2 if plan.config.cluster == "hartigan" else 1
    flops = merges = 0.0
    work_area = layer_bytes = 0
    sizes = {s.name: s.nbytes for s in plan.tensors}
    for i, (a, b) in enumerate(zip(plan.before.layers, plan.after.layers, strict=True)):
        units = _units(a)
        flops += _gram_flops(a.intermediate, 3 * shape.hidden, b.intermediate)
        flops += _gram_flops(units, 2 * (a.heads + a.kv_heads) // units * shape.head_dim * shape.hidden, _units(b))
        merges += (a.intermediate - b.intermediate) * a.intermediate
        if a != b:
            work_area = max(work_area, matrices * 4 * a.intermediate**2)
            layer_bytes = max(layer_bytes, sum(sizes[tensor_name(i, role)] for role, _ in shape.layer_roles(a)))
    seconds = flops / matmul_rate() + merges * MERGE_SECONDS_PER_ROW
    seconds += (plan.bytes_before + plan.bytes_after) / DISK_BYTES_PER_SECOND
    return Estimate(BASE_BYTES + work_area + 2 * layer_bytes, plan.bytes_after, round(seconds, 1))


def _units(layer: LayerShape) -> int:
    return layer.kv_heads if layer.kv_heads > 1 else layer.heads


def human_seconds(seconds: float) -> str:
    """Render a duration for people: ``42 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
