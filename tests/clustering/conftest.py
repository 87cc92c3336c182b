from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture
def rows() -> Callable[..., Tensor]:
    """Make n x d float64 rows in ``groups`` separated groups of skewed sizes."""

    def make(n: int = 60, d: int = 12, groups: int = 20, noise: float = 0.05, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand(n, generator=generator)
        source = torch.cat([torch.arange(groups), (draw[groups:] ** 2 * groups).long()])
        centres = torch.randn(groups, d, generator=generator, dtype=torch.float64)
        points = centres[source] + noise * torch.randn(n, d, generator=generator, dtype=torch.float64)
        return points[torch.randperm(n, generator=generator)]

    return make


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill every torch.empty with NaN or the largest integer."""
    memory = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    memory.fill_uninitialized_memory = before[1]
