"""What a fold will take on this machine: peak memory, disk, and time by stage, before anything is done.

Methods describe their own cost; what all runs share is added here, and the machine's rates come from a short probe.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from llmfold.checkpoint import partial_folder
from llmfold.effort import EFFORTS
from llmfold.methods.method import method_of
from llmfold.planning.cost import Cost, Rates, Stage, forward_flops, passes
from llmfold.planning.plan import FoldPlan
from llmfold.runtime.devices import compute_dtype, pick_device
from llmfold.runtime.limits import available_memory, check_disk, check_memory

BASE_BYTES = 350_000_000
"""Anonymous memory of Python, torch and transformers themselves, measured on Linux."""
DISK_BYTES_PER_SECOND = 500e6
MEMORY_BYTES_PER_SECOND = 10e9
CHECKED_IN_MEMORY_BYTES = 300_000_000
"""Below this size the reload check holds the model in memory; above, accelerate reads it layer by layer from disk."""
HELD_GROUPS = 5
"""Of experts, or of a layer of them: two while one is stacked ahead, one at hand, one put together, one parted."""
CHECKED_VOCABULARY = 16_384
"""Rows of the output embedding that the reload check's own forward pass multiplies at once."""
CHECKED_PASSES = 3
"""Times that the reload check reads the result: to compare bytes, by transformers, and by llmfold's own pass."""
AFTERWARDS = "afterwards"
"""Stage of what is measured once the fold is done."""
_CONTINUED_TOKENS = 64
"""Positions at which prompts are read and continued, by each of the two models."""
_PROBE_ROWS, _PROBE_WIDTH, _PROBE_UNITS, _PROBE_FACTORED = 64, 2048, 512, 1024
_LONG = 3600


@dataclass(frozen=True)
class Estimate:
    """Peak anonymous memory and disk in bytes, and time in seconds.

    Attributes:
        memory_bytes, disk_bytes: peaks.
        stages: seconds by stage, under the names and in the order of a run's report.
        forward_pass_seconds: the unit: one pass of the dense model over the tokens that are measured on.
        efforts: seconds of the whole by effort; empty where the effort changes nothing.
    """

    memory_bytes: int
    disk_bytes: int
    stages: dict[str, float]
    forward_pass_seconds: float
    efforts: dict[str, float]

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages.values())

    @property
    def passes(self) -> dict[str, float]:
        """Stages in forward passes."""
        return passes(self.stages, self.forward_pass_seconds)


def estimate(plan: FoldPlan) -> Estimate:
    """Estimate the cost of ``plan`` from its shapes and the machine's own rates."""
    device = pick_device(plan.config.device)
    rates = machine_rates(device, compute_dtype(plan.config.compute_dtype, device, plan.tensors[0].dtype))
    stages = {stage.name: rates.seconds(stage) for stage in whole_cost(plan).stages}
    unit = forward_flops(plan.whole, *unit_tokens(plan)) / rates.large
    return Estimate(memory_needed(plan), disk_needed(plan), stages, unit, _efforts(plan, rates))


def _efforts(plan: FoldPlan, rates: Rates) -> dict[str, float]:
    """Seconds of the same fold by effort; explicit numbers stay."""
    if not plan.config.uses("effort") or not (plan.folded_layers or plan.removed):
        return {}
    seconds = {}
    for name in EFFORTS:
        other = dataclasses.replace(plan, config=dataclasses.replace(plan.config, effort=name))
        seconds[name] = sum(map(rates.seconds, whole_cost(other).stages))
    return seconds if len(set(seconds.values())) > 1 else {}


def whole_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of a fold: its method's, with what all runs share, in the order of a run's stages."""
    cost, size = method_cost(plan, processes), plan.bytes_before + plan.bytes_after
    early, names = ("sample", "depth", "prepare", "importance", "widths"), {stage.name for stage in cost.stages}
    stages = [
        *(cost.stage(name) for name in early if name in names or name not in ("sample", "depth", "importance")),
        Stage("read", disk=float(plan.bytes_before)),
        Stage("write", disk=float(plan.bytes_after), memory=float(size)),
        Stage("forward"),
        *(stage for stage in cost.stages if stage.name not in early),
        Stage("check", disk=float(CHECKED_PASSES * plan.bytes_after)),
        *_afterwards(plan),
    ]
    return dataclasses.replace(cost, stages=Cost.of(stages).stages)


def method_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost of what the method itself does; none where no layer changes."""
    return method_of(plan.config.method).cost(plan, processes) if plan.folded_layers or plan.removed else Cost()


def _afterwards(plan: FoldPlan) -> list[Stage]:
    """Tokens sampled from the dense model and run through both, prompts continued; tasks of ``--eval`` not counted."""
    tokens = plan.config.fidelity_tokens
    if not tokens and plan.config.eval is None:
        return []
    before, after = (forward_flops(shape, tokens, 0) for shape in (plan.whole, plan.after))
    size = float(plan.bytes_before + plan.bytes_after)
    continued = _CONTINUED_TOKENS * size if tokens else 0.0
    return [Stage(AFTERWARDS, skinny=before, large=before + after, memory=continued, disk=size)]


def unit_tokens(plan: FoldPlan) -> tuple[int, int]:
    """Tokens of the unit and the length of their sequences: what the method measures on, or others of the effort do."""
    cost, effort = method_cost(plan), EFFORTS[plan.config.effort]
    if cost.tokens:
        return cost.tokens, cost.length
    return effort.tokens_for(plan.before), effort.length_for(plan.before)


_SUSTAINED = 0.55
"""Share of a probe's rate that whole layers reach for minutes, norms and attention included: measured on SmolLM2."""


@cache
def machine_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """What this machine does in a second when it is free, from a probe of a fraction of a second.

    On the host the time of its processor counts, so that what else runs on the machine does not.

    Args:
        device: where products are taken.
        dtype: of forward passes while sampling.
    """
    n, width = _PROBE_UNITS, _PROBE_WIDTH
    rows = torch.ones(4 * n, n, device=device)
    weights = torch.ones(2, width, width, device=device, dtype=dtype)
    few = torch.ones(_PROBE_ROWS, width, device=device, dtype=dtype)
    positive = torch.eye(_PROBE_FACTORED, device=device, dtype=torch.float64)

    def factor() -> None:
        torch.cholesky_inverse(torch.linalg.cholesky(positive))

    return Rates(
        large=_SUSTAINED * 8 * n**3 / _timed(lambda: rows.T @ rows, device),
        skinny=_SUSTAINED * 4 * _PROBE_ROWS * width**2 / _timed(lambda: [few @ w.T for w in weights], device, 1),
        double=_PROBE_FACTORED**3 / _timed(factor, device, 1),
        memory=MEMORY_BYTES_PER_SECOND,
        disk=DISK_BYTES_PER_SECOND,
    )


def _timed(work: Callable[[], object], device: torch.device, times: int = 2) -> float:
    """Seconds of the quickest of a few calls."""
    on_host = device.type == "cpu"
    clock = time.process_time if on_host else time.perf_counter
    spent = []
    for _ in range(times):
        start = clock()
        work()
        if not on_host:
            torch.cuda.synchronize(device)
        spent.append(clock() - start)
    return max(min(spent), 1e-6) / (torch.get_num_threads() if on_host else 1)


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
    check_disk(folders, sum(disk_needed(plan, processes) for plan in plans))
    if on_host:
        check_memory(max(memory_needed(plan, processes) for plan in plans), available_memory())


def disk_needed(plan: FoldPlan, processes: int = 1) -> int:
    """Bytes of the output and of hidden states that wait on disk."""
    return plan.bytes_after + method_cost(plan, processes).states


def memory_needed(plan: FoldPlan, processes: int = 1) -> int:
    """Peak anonymous memory of the host: of folding a layer, of sampling, or of the check."""
    shape, sizes = plan.before, {s.name: s.nbytes for s in plan.tensors}
    cost = method_cost(plan, processes)
    stored = [sum(sizes[name] for name in shape.stored_names(i)) for i in plan.folded_layers]
    stored = [_held(plan, index, whole) for index, whole in zip(plan.folded_layers, stored, strict=True)]
    folding = processes if plan.config.independent else 1
    layers = folding * (cost.work_area + max(stored, default=0))
    layer = max(map(plan.after.layer_parameters, plan.after.layers))
    # Of the passes of the check, stock float32 takes most; llmfold's own may run beside it, the stored dtype is mapped.
    check = 4 * 2 * max(shape.vocabulary * shape.hidden, layer)
    check += 4 * (layer + CHECKED_VOCABULARY * shape.hidden) if processes > 1 else 0
    small = plan.bytes_after < CHECKED_IN_MEMORY_BYTES or plan.config.verify != "full"
    return processes * BASE_BYTES + max(layers, cost.sampling, 0 if small else check)


def _held(plan: FoldPlan, index: int, whole: int) -> int:
    """Bytes of a layer's tensors that are held at once; ``whole`` where none of them are stacked when they are read."""
    group, rest = plan.before.apart(index)
    if group and not plan.config.facts.by_pieces:
        group = plan.before.layer_parameters(plan.before.layers[index])
    return max(HELD_GROUPS * group, rest) * plan.tensors[0].dtype.itemsize if group else whole


def advice(plan: FoldPlan, seconds: float) -> str | None:
    """What to do instead where a method takes hours on this machine."""
    if plan.config.uses("refine") and seconds > _LONG:
        return "that is long: --effort quick is several times quicker, and --method weights does not sample"
    return None
