"""k-means assignment: from the rows themselves, and in Gram space in one pass over the Gram."""

from typing import NamedTuple

from torch import Tensor

from llmfold_kernels.assign import naive
from llmfold_kernels.centroids import Segments
from llmfold_kernels.dispatch import launching_on, on_triton


class Assignment(NamedTuple):
    """The nearest centroid of each row (int64, n) and its squared distance (float32, n)."""

    labels: Tensor
    distances: Tensor


class Nearest(NamedTuple):
    """Of each row: the centre of least score (int64, n), that score, and the score of the centre it belongs to."""

    labels: Tensor
    scores: Tensor
    own: Tensor


def assign_rows(rows: Tensor, centroids: Tensor) -> Assignment:
    """Find each row's nearest centroid, equal ones to the lowest, without the n x k matrix of distances.

    Features are walked in tiles, so d is not bounded. Products are exact and sums float32; a distance is the difference
    of norms and products, so one below about 1e-6 of the norms is rounding.

    Args:
        rows: n x d, bf16, fp16 or fp32, any strides, finite.
        centroids: k x d of the same dtype and device, k >= 1.

    Raises:
        ValueError: no centroids, or shapes or dtypes that do not fit.
    """
    if not len(centroids) or rows.shape[1:] != centroids.shape[1:] or rows.dtype != centroids.dtype:
        raise ValueError(
            f"centroids {centroids.dtype} {tuple(centroids.shape)} do not fit rows {rows.dtype} {tuple(rows.shape)}"
        )
    if on_triton(rows, centroids):
        from llmfold_kernels.assign import kernel

        with launching_on(rows):
            return Assignment(*kernel.assign_rows(rows, centroids))
    return Assignment(*naive.assign_rows(rows, centroids))


def nearest_centre(gram: Tensor, parts: Segments, offset: Tensor, scale: Tensor, labels: Tensor) -> Nearest:
    """Score every row i against every centre c by offset_c - scale_c sum_{j in c} S_ij; keep the least and its own.

    With offset_c the squared norm of the mean and scale_c = 2/|c|, the score is the squared distance less S_ii. Each
    entry of the Gram is read once and sums run in row order. Equal scores go to the lowest centre.

    Args:
        gram: n x n symmetric, float32 (float64 on the twin), rows contiguous.
        parts: members of the k centres.
        offset: (k,) infinite for an empty centre.
        scale: (k,).
        labels: (n,) the centre each row belongs to, in 0..k-1.
    """
    if on_triton(gram, offset, scale) and gram.stride(1) == 1:
        from llmfold_kernels.assign import kernel

        with launching_on(gram):
            return Nearest(*kernel.nearest_centre(gram, *parts, offset.contiguous(), scale.contiguous(), labels))
    return Nearest(*naive.nearest_centre(gram, parts.order, parts.starts, parts.sizes, offset, scale, labels))
