from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmfold.folding.grouping import Groups, merge_rows, scale_rows, squared_norms

from .builders import generator

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4, 3, 0])


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill every torch.empty with NaN or the largest integer."""
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    memory.fill_uninitialized_memory = before[1]


def naive_merge(rows: Tensor, labels: Tensor, *, mean: bool, scale: Tensor | None) -> Tensor:
    """One cluster at a time, one member after the other."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    out = []
    for label in range(int(labels.max()) + 1):
        members = [unit for unit in range(len(labels)) if int(labels[unit]) == label]
        if len(members) == 1:
            out.append(rows[members[0]])
            continue
        total = torch.zeros(rows.shape[1:], dtype=wide)
        for unit in members:
            total = total + rows[unit].to(wide) * (1 if scale is None else scale[unit].to(wide))
        out.append((total / len(members) if mean else total).to(rows.dtype))
    return torch.stack(out)


def random_rows(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=generator(1), dtype=torch.float64).to(dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("size", [(10,), (10, 7), (10, 3, 5)])
def test_merging_equals_a_loop_over_members_to_the_bit(
    dtype: torch.dtype, mean: bool, scaled: bool, size: tuple[int, ...]
) -> None:
    rows, scale = random_rows(*size, dtype=dtype), random_rows(10) if scaled else None
    merged = merge_rows(rows, Groups(LABELS), mean=mean, scale=scale)
    assert merged.dtype == dtype
    assert torch.equal(merged, naive_merge(rows, LABELS, mean=mean, scale=scale))


def test_sums_of_narrow_dtypes_are_accumulated_in_float32() -> None:
    rows = torch.full((1001, 1), 1.0, dtype=torch.bfloat16)
    merged = merge_rows(rows, Groups(torch.zeros(1001, dtype=torch.int64)), mean=False)
    assert merged.item() == torch.tensor(1001.0).bfloat16().item()
    assert merge_rows(rows, Groups(torch.zeros(1001, dtype=torch.int64)), mean=True).item() == 1.0


def test_strided_views_merge_like_their_copies() -> None:
    weight = random_rows(6, 10)
    groups = Groups(LABELS)
    assert torch.equal(merge_rows(weight.T, groups, mean=False), merge_rows(weight.T.contiguous(), groups, mean=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_units_that_stand_alone_keep_their_bits_and_inputs_are_left_alone(dtype: torch.dtype) -> None:
    rows = random_rows(10, 4, dtype=dtype)
    rows[3, 0], rows[7, 1] = -0.0, torch.finfo(dtype).smallest_normal / 4
    before, scale = rows.clone(), torch.full((10,), 3.0)
    groups = Groups(LABELS)
    merged = scale_rows(merge_rows(rows, groups, mean=True, scale=scale), groups, torch.full((5,), 7.0))
    as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(merged[[2, 4]].view(as_bits), rows[[3, 7]].view(as_bits))
    assert torch.equal(rows.view(as_bits), before.view(as_bits))
    assert not torch.equal(merged[0], rows[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_touches_merged_rows_only(dtype: torch.dtype) -> None:
    groups, factor = Groups(LABELS), torch.tensor([2.0, 0.5, 100.0, 4.0, 100.0])
    rows = random_rows(5, 3, dtype=dtype)
    expected = rows * torch.tensor([2.0, 0.5, 1.0, 4.0, 1.0], dtype=dtype)[:, None]
    assert torch.equal(scale_rows(rows, groups, factor), expected)


def test_nothing_to_merge_is_a_copy() -> None:
    rows = random_rows(4, 2)
    merged = merge_rows(rows, Groups(torch.arange(4)), mean=False, scale=torch.full((4,), 9.0))
    assert torch.equal(merged, rows)
    assert merged.data_ptr() != rows.data_ptr()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_groups_are_what_their_labels_say(labels: list[int]) -> None:
    names = list(dict.fromkeys(labels))
    numbered = torch.tensor([names.index(label) for label in labels])
    groups = Groups(numbered)
    assert [groups.members(g).tolist() for g in range(len(names))] == [
        [unit for unit, label in enumerate(labels) if label == name] for name in names
    ]
    assert groups.first.tolist() == [labels.index(name) for name in names]
    assert groups.merged.tolist() == [g for g, name in enumerate(names) if labels.count(name) > 1]
    assert sum(size * count for size, count in groups.histogram().items()) == len(labels)
    assert sum(groups.histogram().values()) == len(names)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(10)))
def test_order_of_units_changes_rounding_at_most(order: list[int]) -> None:
    rows, shuffled = random_rows(10, 4, dtype=torch.float64), LABELS[order]
    merged = merge_rows(rows, Groups(LABELS), mean=True)
    assert torch.allclose(merge_rows(rows[order], Groups(shuffled), mean=True), merged, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_norms_do_not_depend_on_chunks_or_overflow(dtype: torch.dtype) -> None:
    rows = random_rows(10, 6, dtype=dtype) * 300
    expected = rows.double().square().sum(1)
    for chunk in (1, 3, 1024):
        assert torch.allclose(squared_norms(rows, chunk).double(), expected, rtol=1e-6)
