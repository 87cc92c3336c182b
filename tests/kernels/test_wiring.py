"""Clustering takes the kernels where they can work, and finds the same clusters with them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold.clustering import Method, cluster, ward
from llmfold.clustering.device import kernels_for
from llmfold.clustering.partition import groups_by_size
from llmfold_kernels import from_groups, segments
from llmfold_kernels.dispatch import interpreted

Draw = Callable[..., Tensor]


def planted(draw: Draw) -> tuple[Tensor, Tensor]:
    """60 rows around 20 centres, and the centre of each."""
    source = torch.cat((torch.arange(20), (torch.arange(40) * 7 % 20) // 2))
    centres = draw(20, 70)
    return (centres[source] + 0.01 * draw(60, 70, seed=1)).float(), source


@pytest.mark.parametrize("method", ["ward", "hartigan", "kmeans"])
def test_planted_clusters_are_found(draw: Draw, method: Method) -> None:
    rows, source = planted(draw)
    found = cluster([rows[:, :30], rows[:, 30:].T.contiguous().T], 20, method=method)
    same = (found.labels[:, None] == found.labels) == (source[:, None] == source)
    assert bool(same.all())
    assert found.bound is not None
    assert 1 - 1e-4 <= found.inertia / found.bound < 1.6


def test_kernels_are_taken_for_what_they_know_only(device: torch.device) -> None:
    expected = interpreted() or device.type == "cuda"
    assert (kernels_for(torch.ones(2, device=device)) is not None) == expected
    assert kernels_for(torch.ones(2, dtype=torch.float64, device=device)) is None


@pytest.mark.parametrize("bad", [-1.0, torch.inf, torch.nan])
def test_unusable_distances_are_refused_everywhere(device: torch.device, bad: float) -> None:
    with pytest.raises(ValueError, match="finite and nonnegative"):
        ward(torch.full((3, 3), bad, device=device), 1)


def test_groups_and_labels_make_the_same_segments(device: torch.device) -> None:
    labels = torch.tensor([3, 0, 3, 1, 3, 1, 5], device=device)
    plain, grouped = segments(labels, 6), from_groups(list(groups_by_size(labels, 6)), 6)
    for cluster_index in range(6):
        members = [
            parts.order[parts.starts[cluster_index] :][: int(parts.sizes[cluster_index])].tolist()
            for parts in (plain, grouped)
        ]
        assert members[0] == members[1]
    assert torch.equal(plain.ranked, grouped.ranked)
