"""What the segment sums compute, in torch."""

import torch
from torch import Tensor


def segment_sums(rows: Tensor, order: Tensor, starts: Tensor, sizes: Tensor, *, mean: bool) -> Tensor:
    """Sum (or average) rows by segment: k x w, float32 (float64 for float64 rows), 0 where a segment is empty."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    out = torch.zeros(len(sizes), rows.shape[1], dtype=wide, device=rows.device)
    cluster = torch.repeat_interleave(torch.arange(len(sizes), device=rows.device), sizes)
    place = torch.arange(len(order), device=rows.device) - starts[cluster]
    # One member of every segment at a time: no two additions meet, so the order is fixed on any device.
    for turn in range(int(sizes.max()) if len(sizes) else 0):
        now = place == turn
        out[cluster[now]] += rows[order[now]].to(wide)
    return out / sizes.clamp(min=1)[:, None] if mean else out
