"""What the assignment kernels compute, in torch."""

import torch
from torch import Tensor

from llmfold_kernels.centroids.naive import segment_sums

_ROWS = 1024


def assign_rows(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each row (int64, n; ties to the lowest) and its squared distance (float32, n)."""
    c = centroids.float()
    offset = c.square().sum(1)
    labels, distances = [], []
    for start in range(0, len(rows), _ROWS):
        x = rows[start : start + _ROWS].float()
        score = offset - 2 * (x @ c.T)
        best = score.argmin(1)
        labels.append(best)
        distances.append((score.gather(1, best[:, None]).squeeze(1) + x.square().sum(1)).clamp_(min=0))
    return torch.cat(labels), torch.cat(distances)


def nearest_centre(
    gram: Tensor, order: Tensor, starts: Tensor, sizes: Tensor, offset: Tensor, scale: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best centre (int64, n; ties to the lowest), its score and the score of ``labels``, in Gram's dtype."""
    score = offset[:, None] - scale[:, None] * segment_sums(gram, order, starts, sizes, mean=False)
    best = score.argmin(0)
    return best, score.gather(0, best[None]).squeeze(0), score.gather(0, labels[None]).squeeze(0)
