import numpy as np
import pytest
import torch

from llmfold.clustering.quality import mst_edges
from llmfold.clustering.spanning import spanning_edges


@pytest.mark.parametrize("n", [1, 2, 3, 64, 301])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_edges_as_prim(n: int, dtype: torch.dtype) -> None:
    points = torch.randn(n, 5, generator=torch.Generator().manual_seed(n), dtype=dtype)
    distances = torch.cdist(points, points).square()
    distances = torch.minimum(distances, distances.T)
    np.testing.assert_array_equal(spanning_edges(distances).double().numpy(), mst_edges(distances))


@pytest.mark.parametrize("seed", range(5))
def test_ties_close_no_cycle(seed: int) -> None:
    """Distances of three values only: nearly all choices are ties."""
    draw = torch.randint(0, 3, (90, 90), generator=torch.Generator().manual_seed(seed)).float()
    distances = torch.minimum(draw, draw.T).fill_diagonal_(0)
    np.testing.assert_array_equal(spanning_edges(distances).double().numpy(), mst_edges(distances))
    everywhere = torch.ones(50, 50).fill_diagonal_(0)
    assert spanning_edges(everywhere).tolist() == [1.0] * 49
