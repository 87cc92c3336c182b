"""What sampling costs: every position of a batch of documents reads the whole model once."""

import math
from dataclasses import replace

from llmfold.data.tokens import TokenBudget
from llmfold.planning.cost import Cost, Stage, forward_flops
from llmfold.planning.plan import FoldPlan
from llmfold.runtime.devices import compute_dtype, pick_device
from llmfold.runtime.limits import CACHE_BYTES, available_memory, room


def with_sampling(cost: Cost, plan: FoldPlan, budget: TokenBudget, processes: int) -> Cost:
    """A cost on the sequences of a budget, with that of sampling them where they are sampled."""
    if not plan.config.samples:
        return cost
    sampling = sampling_cost(plan, budget, processes)
    stages, states = (*sampling.stages, *cost.stages), max(cost.states, sampling.states)
    return replace(cost, stages=stages, states=states, sampling=sampling.sampling)


def sampling_cost(plan: FoldPlan, budget: TokenBudget, processes: int) -> Cost:
    """Cost of sampling all documents of a budget; its states are the files of key/value caches."""
    device = pick_device(plan.config.device)
    shape, length = plan.whole, budget.document_length
    each = sum(2 * 4 * layer.kv_heads * shape.head_dim for layer in shape.layers) * length
    batches = budget.batches(each, CACHE_BYTES)
    cache = -(-budget.documents // batches) * each
    passes = batches * (length - 1)
    computed = shape.parameters * compute_dtype(plan.config.compute_dtype, device, plan.tensors[0].dtype).itemsize
    flops = forward_flops(shape, budget.documents * length, length)
    read = plan.bytes_before
    if device.type != "cpu":
        return Cost((Stage("sample", skinny=flops, memory=float(passes) * computed, disk=read),))
    share = min(processes, batches)
    left = room("cpu", available_memory() // share, plan.config.memory_limits)
    for held in (computed, plan.bytes_before):
        if held + cache <= left:
            stage = Stage("sample", skinny=flops, memory=float(passes) * (held + cache / 2), disk=read)
            return Cost((stage,), sampling=share * (held + max(cache, _stacking(plan))))
    held = min(plan.bytes_before, left)
    read += passes * (plan.bytes_before - held)
    stage = Stage("sample", skinny=flops, memory=float(passes) * (plan.bytes_before + cache / 2), disk=float(read))
    return Cost((stage,), sampling=share * held, states=share * cache)


def _stacking(plan: FoldPlan) -> int:
    """Bytes of the largest stack of experts: transformers has its parts beside the model while it loads."""
    shape, size = plan.before, plan.tensors[0].dtype.itemsize
    mixtures = [layer for index, layer in enumerate(shape.layers) if shape.apart(index)[0]]
    return max((size * math.prod(of) for layer in mixtures for _, of in shape.layer_roles(layer)), default=0)
