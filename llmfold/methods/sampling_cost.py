"""What sampling costs: every position of a batch of documents reads the whole model once."""

from llmfold.devices import compute_dtype, pick_device
from llmfold.methods.tokens import TokenBudget
from llmfold.planning.cost import Stage, forward_flops
from llmfold.planning.limits import available_memory, cache_limit, room
from llmfold.planning.plan import FoldPlan


def sampling_cost(plan: FoldPlan, budget: TokenBudget, processes: int) -> tuple[Stage, int]:
    """The stage, and the bytes of the host's memory that all processes take for it together."""
    device = pick_device(plan.config.device)
    shape, length = plan.before, budget.document_length
    each = sum(2 * 4 * layer.kv_heads * shape.head_dim for layer in shape.layers) * length
    limit = cache_limit(plan.config, "cpu" if device.type == "cpu" else device.index or 0)
    batches = budget.batches(each, limit)
    cache = -(-budget.documents // batches) * each
    passes = batches * (length - 1)
    computed = shape.parameters * compute_dtype(plan.config.compute_dtype, device, plan.tensors[0].dtype).itemsize
    flops = forward_flops(shape, budget.documents * length, length)
    if device.type != "cpu":
        return Stage("sample", skinny=flops, memory=float(passes) * computed, disk=plan.bytes_before), 0
    share = min(processes, batches)
    left = max(room("cpu", available_memory() // share, plan.config.memory_limits) - cache, 0)
    held = next((size for size in (computed, plan.bytes_before) if size <= left), left)
    read = plan.bytes_before if held >= plan.bytes_before else passes * plan.bytes_before
    return Stage("sample", skinny=flops, memory=float(passes) * held, disk=float(read)), share * (held + cache)
