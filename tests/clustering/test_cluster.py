from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmfold.clustering import Method, cluster, inertia_of_rows
from llmfold.clustering.partition import numbered_by_first_occurrence

Rows = Callable[..., Tensor]
METHODS: list[Method] = ["ward", "kmeans", "hartigan"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 2, 30, 59, 60])
def test_every_method_gives_exactly_k_clusters_above_the_bound(rows: Rows, method: Method, k: int) -> None:
    points = rows().float()
    found = cluster([points], k, method=method)
    assert found.labels.dtype == torch.int64
    assert torch.equal(found.labels, numbered_by_first_occurrence(found.labels))
    assert len(found.sizes) == k
    assert bool(found.sizes.all())
    assert found.inertia == inertia_of_rows([points], found.labels)
    assert found.bound is not None
    assert found.inertia >= found.bound * (1 - 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_planted_groups_are_found(rows: Rows, method: Method) -> None:
    found = cluster([rows(noise=1e-3)], 20, method=method)
    assert found.bound is not None
    assert found.inertia < 2 * found.bound


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_and_layout_do_not_matter(rows: Rows, method: Method, dtype: torch.dtype) -> None:
    points = rows().to(dtype)
    whole = cluster([points], 30, method=method)
    blocks = [points[:, :4], points[:, 4:].T.contiguous().T]
    assert torch.equal(cluster(blocks, 30, method=method).labels, whole.labels)


@pytest.mark.parametrize("method", METHODS)
def test_runs_repeat_and_draw_nothing_global(rows: Rows, method: Method) -> None:
    points = rows(noise=0.5).float()
    state = torch.get_rng_state()
    first = cluster([points], 30, method=method, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.labels, cluster([points], 30, method=method, seed=1).labels)


@pytest.mark.parametrize("method", ["ward", "hartigan"])
def test_rotation_scale_and_permutation(rows: Rows, method: Method) -> None:
    points = rows()
    plain = cluster([points], 30, method=method)
    generator = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    permutation = torch.randperm(60, generator=generator)
    moved = cluster([3 * points[permutation] @ rotation], 30, method=method)
    assert torch.equal(moved.labels, numbered_by_first_occurrence(plain.labels[permutation]))
    assert moved.inertia == pytest.approx(9 * plain.inertia, rel=1e-9)


def test_hartigan_is_no_worse_than_ward(rows: Rows) -> None:
    points = rows(noise=0.5).float()
    assert cluster([points], 25, method="hartigan").inertia <= cluster([points], 25, method="ward").inertia


def test_all_rows_kept_needs_no_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.Tensor.addmm_", None)
    found = cluster([torch.ones(5, 2)], 5, method="ward")
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert (found.inertia, found.bound) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_cost_nothing(method: Method) -> None:
    found = cluster([torch.eye(4).repeat(3, 1)], 4, method=method)
    assert found.labels.tolist() == [0, 1, 2, 3] * 3
    assert (found.inertia, found.bound) == (0.0, 0.0)


def test_certificate_can_be_left_out(rows: Rows) -> None:
    for k in (30, 60):
        found = cluster([rows()], k, method="ward", certificate=False)
        assert found.bound is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite(method: Method, bad: float) -> None:
    points = torch.ones(4, 3)
    points[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        cluster([points], 2, method=method)


def test_unusable_arguments() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match="from 1 to 4"):
            cluster([torch.ones(4, 3)], k, method="ward")
    with pytest.raises(ValueError, match="ward, kmeans or hartigan"):
        cluster([torch.ones(4, 3)], 2, method="average")  # type: ignore[arg-type]
