"""Backward elimination in Triton: one launch removes one unit, and nothing is read back until all are gone.

Rank-one downdates are delayed: a step corrects the one row it needs from the vectors that wait, and every DELAY steps
they are applied at once as matrix products.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmfold_kernels.dispatch import blocks_of

DELAY, TOGETHER, BLOCK = 64, 8, 256


@triton.jit
def _divide(x, y):
    # Plain division of float32 is approximate on a GPU; that of float64 is not.
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def _root(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def _keep_cheapest(cost, unit, alive, values, units, program):
    least = tl.min(cost, 0)
    tl.store(values + program, least)
    tl.store(units + program, tl.min(tl.where(alive & (cost == least), unit, 2147483647), 0))


@triton.jit
def first_costs_kernel(p_diagonal, k_diagonal, values, units, n, BLOCK: tl.constexpr):
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(p_diagonal + unit, mask=unit < n, other=1.0)
    k = tl.load(k_diagonal + unit, mask=unit < n, other=float("inf"))
    _keep_cheapest(_divide(k, p), unit, unit < n, values, units, tl.program_id(0))


@triton.jit(do_not_specialize=["step", "pending"])
def step_kernel(
    inverse,
    products,
    p_diagonal,
    k_diagonal,
    ps,
    ks,
    kappas,
    gone,
    values,
    units,
    next_values,
    next_units,
    removed,
    costs,
    n,
    programs,
    step,
    pending,
    TINY: tl.constexpr,
    DELAY: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    # Every program finds the unit for itself from what the programs of the last step left.
    part = tl.arange(0, PROGRAMS)
    value = tl.load(values + part, mask=part < programs, other=float("inf"))
    cost = tl.min(value, 0)
    candidate = tl.load(units + part, mask=part < programs, other=2147483647)
    unit = tl.min(tl.where((value == cost) & (part < programs), candidate, 2147483647), 0)
    unit = tl.minimum(unit, n - 1)  # where all is NaN there is no cheapest: any unit that exists will do
    row = unit.to(tl.int64) * n

    waiting = tl.arange(0, DELAY)
    live = waiting < pending
    p_unit = tl.load(ps + waiting * n + unit, mask=live, other=0.0)
    k_unit = tl.load(ks + waiting * n + unit, mask=live, other=0.0)
    kappa_waiting = tl.load(kappas + waiting, mask=live, other=0.0)
    mixed = k_unit - kappa_waiting * p_unit
    pivot = tl.maximum(tl.load(inverse + row + unit) - tl.sum(p_unit * p_unit, 0), TINY)
    kappa = tl.load(products + row + unit) - tl.sum(p_unit * mixed, 0) - tl.sum(k_unit * p_unit, 0)
    kappa = _divide(kappa, pivot)

    other = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = other < n
    p = tl.load(inverse + row + other, mask=inside, other=0.0)
    k = tl.load(products + row + other, mask=inside, other=0.0)
    for start in range(0, pending, TOGETHER):
        s = start + tl.arange(0, TOGETHER)
        ours = (s < pending)[:, None] & inside[None, :]
        p_s = tl.load(ps + s[:, None] * n + other[None, :], mask=ours, other=0.0)
        k_s = tl.load(ks + s[:, None] * n + other[None, :], mask=ours, other=0.0)
        p_at = tl.load(ps + s * n + unit, mask=s < pending, other=0.0)
        k_at = tl.load(ks + s * n + unit, mask=s < pending, other=0.0)
        kappa_at = tl.load(kappas + s, mask=s < pending, other=0.0)
        p -= tl.sum(p_s * p_at[:, None], 0)
        k -= tl.sum(p_s * (k_at - kappa_at * p_at)[:, None] + k_s * p_at[:, None], 0)
    root = _root(pivot)
    p = _divide(p, root)
    k = _divide(k, root)
    tl.store(ps + pending * n + other, p, mask=inside)
    tl.store(ks + pending * n + other, k, mask=inside)
    p_own = tl.load(p_diagonal + other, mask=inside, other=1.0) - p * p
    k_own = tl.load(k_diagonal + other, mask=inside, other=0.0) - p * (2 * k - kappa * p)
    tl.store(p_diagonal + other, p_own, mask=inside)
    tl.store(k_diagonal + other, k_own, mask=inside)
    dead = (tl.load(gone + other, mask=inside, other=1) != 0) | (other == unit)
    tl.store(gone + other, dead.to(tl.int32), mask=inside)
    following = tl.where(dead, float("inf"), _divide(k_own, p_own))
    _keep_cheapest(following, other, inside & ~dead, next_values, next_units, tl.program_id(0))
    if tl.program_id(0) == 0:
        tl.store(kappas + pending, kappa)
        tl.store(removed + step, unit)
        tl.store(costs + step, cost)


def eliminate(inverse: Tensor, products: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """See :func:`llmfold_kernels.elimination.naive.eliminate`."""
    n, device, dtype = len(inverse), inverse.device, inverse.dtype
    programs = blocks_of(n, BLOCK)
    p_diagonal, k_diagonal = inverse.diagonal().clone(), products.diagonal().clone()
    ps, ks = (torch.empty(DELAY, n, dtype=dtype, device=device) for _ in range(2))
    kappas = torch.empty(DELAY, dtype=dtype, device=device)
    gone = torch.zeros(n, dtype=torch.int32, device=device)
    values = torch.empty(2, programs, dtype=dtype, device=device)
    units = torch.empty(2, programs, dtype=torch.int32, device=device)
    removed = torch.empty(steps, dtype=torch.int32, device=device)
    costs = torch.empty(steps, dtype=dtype, device=device)
    first_costs_kernel[(programs,)](p_diagonal, k_diagonal, values[0], units[0], n, BLOCK=BLOCK)
    for step in range(steps):
        now, then, pending = step % 2, (step + 1) % 2, step % DELAY
        step_kernel[(programs,)](
            inverse,
            products,
            p_diagonal,
            k_diagonal,
            ps,
            ks,
            kappas,
            gone,
            values[now],
            units[now],
            values[then],
            units[then],
            removed,
            costs,
            n,
            programs,
            step,
            pending,
            TINY=torch.finfo(dtype).tiny,
            DELAY=DELAY,
            TOGETHER=TOGETHER,
            BLOCK=BLOCK,
            PROGRAMS=triton.next_power_of_2(programs),
        )
        if pending == DELAY - 1:
            half = ks - 0.5 * kappas[:, None] * ps
            inverse.addmm_(ps.T, ps, alpha=-1)
            products.addmm_(ps.T, half, alpha=-1)
            products.addmm_(half.T, ps, alpha=-1)
    return removed.long().cpu(), costs.cpu()
