"""Ward's merging in Triton: one persistent program per matrix does all merges, so one launch serves many layers.

Row i caches a lower bound on its costs to higher rows and the row that attains it (-1: only a bound). A merge writes
the merged cluster's row and never its column: of the two places of a pair, the one in the row written later holds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS, REGISTERS = 4096, 32, 64


@triton.jit
def row_minima_kernel(costs, bounds, neighbours, n, BLOCK: tl.constexpr):
    row, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    best = tl.full([BLOCK], float("inf"), tl.float32)
    where = tl.full([BLOCK], 2147483647, tl.int32)
    for start in range(0, n, BLOCK):
        if start + BLOCK > row:
            column = start + tl.arange(0, BLOCK)
            live = (column > row) & (column < n)
            at = (matrix * n + row) * n + column
            cost = tl.load(costs + at, mask=live, other=float("inf"))
            closer = cost < best
            best, where = tl.where(closer, cost, best), tl.where(closer, column, where)
    least = tl.min(best, 0)
    tl.store(bounds + matrix * n + row, least)
    # The highest row has no higher one, and its infinite bound never comes up.
    tl.store(neighbours + matrix * n + row, tl.min(tl.where(best == least, where, 2147483647), 0))


@triton.jit
def _at(row, stamp, other, stamps, n):
    """Offset of the pair (row, other) in the row of the two that was written last."""
    wide, own = other.to(tl.int64), row.to(tl.int64)
    return tl.where(stamps > stamp, wide * n + own, own * n + wide)


@triton.jit
def _cheapest(bounds, n, BLOCK: tl.constexpr):
    best = tl.full([BLOCK], float("inf"), tl.float32)
    where = tl.full([BLOCK], 2147483647, tl.int32)
    for start in range(0, n, BLOCK):
        row = start + tl.arange(0, BLOCK)
        bound = tl.load(bounds + row, mask=row < n, other=float("inf"))
        closer = bound < best
        best, where = tl.where(closer, bound, best), tl.where(closer, row, where)
    # Where all is infinite or NaN there is no cheapest: any row that exists will do.
    return tl.minimum(tl.min(tl.where(best == tl.min(best, 0), where, 2147483647), 0), n - 1)


@triton.jit
def merge_kernel(costs, weights, gone, bounds, neighbours, stamps, pairs, prices, n, merges, BLOCK: tl.constexpr):
    matrix = tl.program_id(0).to(tl.int64)
    costs += matrix * n * n
    weights += matrix * n
    gone += matrix * n
    bounds += matrix * n
    neighbours += matrix * n
    stamps += matrix * n
    pairs += matrix * merges * 2
    prices += matrix * merges
    for merge in range(0, merges):
        a = _cheapest(bounds, n, BLOCK)
        while tl.load(neighbours + a) < 0:
            stamp = tl.load(stamps + a)
            best = tl.full([BLOCK], float("inf"), tl.float32)
            where = tl.full([BLOCK], 2147483647, tl.int32)
            for start in range((a // BLOCK) * BLOCK, n, BLOCK):
                column = start + tl.arange(0, BLOCK)
                live = (column > a) & (column < n)
                live = live & (tl.load(gone + column, mask=live, other=1) == 0)
                other = tl.load(stamps + column, mask=live, other=0)
                cost = tl.load(costs + _at(a, stamp, column, other, n), mask=live, other=float("inf"))
                closer = cost < best
                best, where = tl.where(closer, cost, best), tl.where(closer, column, where)
            least = tl.min(best, 0)
            tl.debug_barrier()
            tl.store(bounds + a, least)
            tl.store(neighbours + a, tl.min(tl.where(best == least, where, 2147483647), 0))
            tl.debug_barrier()
            a = _cheapest(bounds, n, BLOCK)
        b = tl.minimum(tl.load(neighbours + a), n - 1)
        price = tl.load(bounds + a)
        of_a, of_b = tl.load(weights + a), tl.load(weights + b)
        stamp_a, stamp_b = tl.load(stamps + a), tl.load(stamps + b)
        # Every thread has read the scalars before any writes the arrays they are in.
        tl.debug_barrier()
        best = tl.full([BLOCK], float("inf"), tl.float32)
        where = tl.full([BLOCK], 2147483647, tl.int32)
        for start in range(0, n, BLOCK):
            row = start + tl.arange(0, BLOCK)
            live = (row < n) & (row != a) & (row != b)
            live = live & (tl.load(gone + row, mask=live, other=1) == 0)
            other = tl.load(stamps + row, mask=live, other=0)
            to_a = tl.load(costs + _at(a, stamp_a, row, other, n), mask=live, other=0.0)
            to_b = tl.load(costs + _at(b, stamp_b, row, other, n), mask=live, other=0.0)
            own = tl.load(weights + row, mask=live, other=1.0)
            # Lance-Williams update of Ward's criterion, in merge costs.
            merged = (own + of_a) * to_a + (own + of_b) * to_b - own * price
            merged = tl.div_rn(merged, own + (of_a + of_b))  # plain division is approximate, and ties would not be ties
            merged = tl.where(live, merged, float("inf"))
            tl.store(costs + a.to(tl.int64) * n + row, merged, mask=row < n)
            above = live & (row > a)
            closer = above & (merged < best)
            best, where = tl.where(closer, merged, best), tl.where(closer, row, where)
            neighbour = tl.load(neighbours + row, mask=live, other=0)
            bound = tl.load(bounds + row, mask=live, other=float("inf"))
            # Rounding alone can put a new cost below a bound; an equal cost goes to the lower row.
            nearer = live & (row < a) & ((merged < bound) | ((merged == bound) & (neighbour > a)))
            lost = (neighbour == a) | (neighbour == b)
            tl.store(neighbours + row, tl.where(nearer, a, tl.where(lost, -1, neighbour)), mask=live)
            tl.store(bounds + row, merged, mask=nearer)
        least = tl.min(best, 0)
        tl.debug_barrier()
        tl.store(bounds + a, least)
        tl.store(neighbours + a, tl.min(tl.where(best == least, where, 2147483647), 0))
        tl.store(bounds + b, float("inf"))
        tl.store(gone + b, 1)
        tl.store(weights + a, of_a + of_b)
        tl.store(stamps + a, merge + 1)
        tl.store(pairs + 2 * merge, a)
        tl.store(pairs + 2 * merge + 1, b)
        tl.store(prices + merge, price)
        tl.debug_barrier()


def merge_greedily(costs: Tensor, weights: Tensor, merges: int) -> tuple[Tensor, Tensor]:
    """Merge in each of L matrices (L x n x n and L x n, float32); returns pairs (L x merges x 2) and costs."""
    count, n = weights.shape
    device = costs.device
    bounds = torch.empty(count, n, device=device)
    neighbours = torch.empty(count, n, dtype=torch.int32, device=device)
    gone, stamps = torch.zeros(2, count, n, dtype=torch.int32, device=device).unbind(0)
    pairs = torch.empty(count, merges, 2, dtype=torch.int32, device=device)
    prices = torch.empty(count, merges, device=device)
    row_minima_kernel[(n, count)](costs, bounds, neighbours, n, BLOCK=1024, num_warps=4)
    merge_kernel[(count,)](
        costs,
        weights,
        gone,
        bounds,
        neighbours,
        stamps,
        pairs,
        prices,
        n,
        merges,
        BLOCK=BLOCK,
        num_warps=WARPS,
        maxnreg=REGISTERS,
    )
    return pairs.long().cpu(), prices.cpu()
