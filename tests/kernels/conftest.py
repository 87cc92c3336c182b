"""One set of tests for three cases: the torch twins (CPU), the kernels in Triton's interpreter, the kernels on CUDA."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from llmfold_kernels.dispatch import interpreted

LONG_IN_THE_INTERPRETER = pytest.mark.slow if interpreted() else ()
SIZES = [(1, 17), (17, 1), (129, 17), pytest.param(1000, 777, marks=LONG_IN_THE_INTERPRETER)]
WRONG_IN_BF16 = pytest.mark.skipif(interpreted(), reason="Triton's interpreter rounds bf16 wrongly")
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=WRONG_IN_BF16)]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not interpreted() else "cpu")


@pytest.fixture
def draw(device: torch.device) -> Callable[..., Tensor]:
    """Normal numbers of a shape and dtype, from a seed of their own."""

    def make(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    return make


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fill every torch.empty with NaN or the largest integer, in every test."""
    memory = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    memory.fill_uninitialized_memory = before[1]
