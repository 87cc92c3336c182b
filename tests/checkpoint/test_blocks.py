import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmfold.checkpoint.blocks import blocks, is_finite


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(1, 200),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.randoms(use_true_random=False),
)
def test_blocks_are_the_elements_in_order_and_bounded(shape, max_bytes, dtype, random):
    tensor = torch.randn(shape).to(dtype)
    axes = list(range(len(shape)))
    random.shuffle(axes)
    tensor = tensor.permute(axes)
    parts = list(blocks(tensor, max_bytes))
    assert all(part.dim() == 1 and part.is_contiguous() for part in parts)
    assert all(part.numel() * part.element_size() <= max(max_bytes, part.element_size()) for part in parts)
    assert torch.equal(torch.cat([*parts, torch.empty(0, dtype=dtype)]), tensor.reshape(-1))


def test_blocks_of_a_contiguous_tensor_are_views():
    tensor = torch.zeros(4, 4)
    for block in blocks(tensor, 16):
        block.fill_(1)
    assert tensor.sum() == 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 1234, -1])
def test_is_finite_finds_one_bad_element(dtype, value, at):
    tensor = torch.randn(9 << 18).to(dtype)
    assert is_finite(tensor)
    tensor[at] = value
    assert not is_finite(tensor)


def test_the_largest_numbers_are_finite():
    assert is_finite(torch.full((3,), torch.finfo(torch.float16).max, dtype=torch.float16))
    assert is_finite(torch.empty(0))
