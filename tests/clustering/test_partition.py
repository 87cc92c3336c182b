import pytest
import torch

from llmfold.clustering.partition import cluster_sizes, cluster_sums, groups_by_size, numbered_by_first_occurrence


@pytest.mark.usefixtures("poisoned")
def test_numbering_by_first_occurrence() -> None:
    labels = torch.tensor([7, 2, 7, 9, 0, 2, 9])
    assert numbered_by_first_occurrence(labels).tolist() == [0, 1, 0, 2, 3, 1, 2]
    assert numbered_by_first_occurrence(torch.tensor([5])).tolist() == [0]


def test_groups_cover_every_row_once_in_row_order() -> None:
    labels = torch.tensor([3, 0, 3, 2, 0, 3])
    groups = {tuple(clusters.tolist()): members.tolist() for clusters, members in groups_by_size(labels, 5)}
    assert groups == {(2,): [[3]], (0,): [[1, 4]], (3,): [[0, 2, 5]]}


def test_sums_per_cluster() -> None:
    labels = torch.tensor([3, 0, 3, 2, 0, 3])
    rows = torch.arange(12.0).view(6, 2)
    sums = cluster_sums(rows, list(groups_by_size(labels, 5)), 5)
    assert torch.equal(sums, torch.zeros(5, 2).index_add(0, labels, rows))


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_out_of_range(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.2"):
        cluster_sizes(torch.tensor(labels), 3)
