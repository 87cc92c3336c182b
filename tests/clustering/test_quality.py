from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from llmfold.clustering import gram, inertia, inertia_of_rows, mst_bound, squared_distances, ward

Rows = Callable[..., Tensor]


def naive_inertia(points: Tensor, labels: Tensor) -> float:
    wide = points.double()
    groups = [wide[labels == label] for label in labels.unique()]
    return float(sum((group - group.mean(0)).square().sum() for group in groups))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("k", [1, 3, 30, 59])
def test_inertia_equals_naive(rows: Rows, k: int) -> None:
    points = rows()
    labels = torch.cat([torch.arange(k), torch.randint(0, k, (60 - k,), generator=torch.Generator().manual_seed(k))])
    expected = naive_inertia(points, labels)
    assert inertia(gram([points]), labels) == pytest.approx(expected, rel=1e-12)
    blocks = [points[:, :5], points[:, 5:].T.contiguous().T]
    assert inertia_of_rows(blocks, labels) == pytest.approx(expected, rel=1e-12)


def test_inertia_of_bfloat16_rows(rows: Rows) -> None:
    points = rows().to(torch.bfloat16)
    labels = torch.arange(60) // 2
    expected = naive_inertia(points, labels)
    assert inertia_of_rows([points], labels) == pytest.approx(expected, rel=1e-12)
    assert inertia(gram([points]), labels) == pytest.approx(expected, rel=1e-5)


def test_clusters_of_one_have_exactly_none(rows: Rows) -> None:
    points = (rows() + 1e3).float()
    assert inertia(gram([points]), torch.arange(60)) == 0
    assert inertia_of_rows([points], torch.arange(60)) == 0


def test_inertia_of_rows_is_accurate_under_an_offset(rows: Rows) -> None:
    points = (rows(noise=1e-3) + 1e3).float()
    labels = ward(squared_distances([points], gram([points])), 20).labels(20)
    assert inertia_of_rows([points], labels) == pytest.approx(naive_inertia(points, labels), rel=1e-9)


@pytest.mark.parametrize("k", [1, 20, 59, 60])
def test_bound_is_half_the_shortest_edges_of_the_spanning_tree(rows: Rows, k: int) -> None:
    points = rows()
    distances = squared_distances([points], gram([points]))
    edges = np.sort(minimum_spanning_tree(distances.numpy()).data)
    assert mst_bound(distances, k) == pytest.approx(edges[: 60 - k].sum() / 2, rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_partition_is_below_the_bound(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 14))
    coordinates = st.lists(st.floats(-8, 8, width=16), min_size=3, max_size=3)
    points = torch.tensor(data.draw(st.lists(coordinates, min_size=n, max_size=n)), dtype=torch.float64)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
    bound = mst_bound(squared_distances([points], gram([points])), len(labels.unique()))
    assert naive_inertia(points, labels) >= bound * (1 - 1e-9) - 1e-12


def test_inertia_falls_as_k_grows(rows: Rows) -> None:
    points = rows()
    distances = squared_distances([points], gram([points]))
    dendrogram = ward(distances, 1)
    found = [inertia_of_rows([points], dendrogram.labels(k)) for k in range(1, 61)]
    bounds = [mst_bound(distances, k) for k in range(1, 61)]
    assert all(more >= fewer for more, fewer in pairwise(found))
    assert all(more >= fewer for more, fewer in pairwise(bounds))


def test_unusable_input() -> None:
    with pytest.raises(ValueError, match="from 1 to 3"):
        mst_bound(torch.zeros(3, 3), 4)
    with pytest.raises(ValueError, match="finite"):
        mst_bound(torch.full((3, 3), torch.nan), 2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        inertia(torch.full((3, 3), torch.nan), torch.zeros(3, dtype=torch.int64))
