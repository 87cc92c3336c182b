"""The unit that times are stated in, measured: one forward pass of the dense model on this machine."""

import time

import torch

from llmfold.models.context import Context
from llmfold.planning.cost import forward_flops, layer_flops
from llmfold.runtime.hidden_states import CHUNK

_PROBE_FLOPS = 4e10
"""About half a second of one core."""
_LEAST_TOKENS, _FEW_ROWS, _MOST_ROWS = 16, 256, 1024
"""Rows at once: as many as the layer is wide, within bounds, so that the probe takes about the memory of a layer."""


@torch.no_grad()
def forward_pass_seconds(context: Context, tokens: int, length: int, device: torch.device) -> float:
    """Seconds of a forward pass, from one decoder layer on a part of a chunk, scaled by floating-point operations.

    Values play no part in the time, so they are constant, experts share them, and nothing is read.

    Args:
        context: of the model.
        tokens: of the pass.
        length: tokens of its sequences.
        device: where to compute.
    """
    shape = context.shape
    layer = shape.layers[0]
    rows = min(_MOST_ROWS, max(_FEW_ROWS, shape.hidden))
    some = min(length, rows, max(_LEAST_TOKENS, int(_PROBE_FLOPS / layer_flops(shape, layer, 1, length))))
    affordable = int(_PROBE_FLOPS / layer_flops(shape, layer, some, some))
    sequences = max(1, min(CHUNK, rows // some, tokens // some, affordable))
    experts = (coupling for coupling in shape.couplings(layer).neurons if coupling.expert is not None)
    stack = {slot.tensor for coupling in experts for slot in coupling.slots.values()}
    weights = {
        role: torch.full(size[1:] if role in stack else size, 1e-3, device=device).expand(size)
        for role, size in shape.layer_roles(layer)
    }
    x = torch.ones(sequences, some, shape.hidden, device=device)
    spent = []
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        float(context.layer(x, weights, 0)[0, 0, 0])  # waits for an accelerator, too
        spent.append(time.perf_counter() - start)
    return min(spent) * forward_flops(shape, tokens, length) / layer_flops(shape, layer, sequences * some, some)
