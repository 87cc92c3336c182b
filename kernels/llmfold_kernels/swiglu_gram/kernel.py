"""SwiGLU activations multiplied as they are made, in Triton: the activations themselves are never stored."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfold_kernels.dispatch import blocks_of, tiles
from llmfold_kernels.gram.kernel import _triangle


def config(dtype: torch.dtype) -> dict[str, int]:
    """Tile, tokens per step, warps and stages by input dtype."""
    if dtype == torch.float32:
        return tiles(256, BLOCK=64, TOKENS=32, num_warps=8, num_stages=2)
    return tiles(256, BLOCK=128, TOKENS=32, num_warps=8, num_stages=3)


@triton.jit
def _activation(gate, up, at, inside):
    g = tl.load(gate + at, mask=inside, other=0.0)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    wide = g.to(tl.float32)
    return (wide / (1.0 + tl.exp(-wide)) * u).to(g.dtype)


@triton.jit
def swiglu_gram_kernel(
    gate,
    up,
    targets,
    weights,
    out,
    tokens,
    n,
    m,
    SQUARE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    # SQUARE makes the lower triangle of AᵀA and mirrors it; otherwise AᵀY.
    if SQUARE:
        row, column = _triangle(tl.program_id(0))
    else:
        row, column = tl.program_id(0) // tl.cdiv(m, BLOCK), tl.program_id(0) % tl.cdiv(m, BLOCK)
    rows, columns = row * BLOCK + tl.arange(0, BLOCK), column * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, tokens, TOKENS):
        token = start + tl.arange(0, TOKENS)
        here = (token < tokens)[:, None]
        line = token[:, None].to(tl.int64)
        left = _activation(gate, up, line * n + rows[None, :], here & (rows < n)[None, :])
        if WEIGHTED:
            mass = tl.load(weights + token, mask=token < tokens, other=0.0)
            left = (left.to(tl.float32) * mass[:, None]).to(left.dtype)
        inside = here & (columns < m)[None, :]
        if SQUARE:
            right = _activation(gate, up, line * n + columns[None, :], inside)
        else:
            right = tl.load(targets + line * m + columns[None, :], mask=inside, other=0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision="ieee")
    at, flipped = (
        rows[:, None].to(tl.int64) * m + columns[None, :],
        columns[None, :].to(tl.int64) * m + rows[:, None],
    )
    inside = (rows < n)[:, None] & (columns < m)[None, :]
    if SQUARE:
        tl.store(out + at, total, mask=inside & (rows[:, None] >= columns[None, :]))
        tl.store(out + flipped, total, mask=inside & (rows[:, None] > columns[None, :]))
    else:
        tl.store(out + at, total, mask=inside)


def swiglu_gram(gate: Tensor, up: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`llmfold_kernels.swiglu_gram.naive.swiglu_gram`."""
    (tokens, n), m = gate.shape, targets.shape[1]
    shape = config(gate.dtype)
    square, cross = torch.empty(n, n, device=gate.device), torch.empty(n, m, device=gate.device)
    down, across = blocks_of(n, shape["BLOCK"]), blocks_of(m, shape["BLOCK"])
    masses = gate if weights is None else weights.to(gate.device, torch.float32).contiguous()
    for out, width, programs in ((square, n, down * (down + 1) // 2), (cross, m, down * across)):
        swiglu_gram_kernel[(programs,)](
            gate,
            up,
            targets,
            masses,
            out,
            tokens,
            n,
            width,
            SQUARE=out is square,
            WEIGHTED=weights is not None,
            **shape,
        )
    return square, cross
