"""Matrices on the host, where loops of many short steps over rows run: a step there costs microseconds."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating]


def host_matrix(matrix: Tensor) -> Array:
    """Return a square matrix as a float32 or float64 NumPy array that shares its memory where it can.

    Raises:
        ValueError: a tensor that is not a non-empty square matrix.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"expected a non-empty square matrix, got {tuple(matrix.shape)}")
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    return np.asarray(matrix.detach().to("cpu", dtype).contiguous().numpy())
