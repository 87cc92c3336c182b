"""Gauss-Newton refit of gate and up rows."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from llmfold.repair import refine
from llmfold.repair.refine import Loader, RefineOptions, Rows, _tensor_cores, refine_gate_up


def planted(bias: bool = False, rows: int = 512, width: int = 12, hidden: int = 8) -> tuple[list[Loader], ...]:
    """Rows whose targets are exactly an MLP of ``width`` neurons, in eight blocks, and that MLP's own gate and up."""
    generator = torch.Generator().manual_seed(1)
    gate, up = (torch.randn(width, hidden, generator=generator) for _ in range(2))
    down = torch.randn(width, hidden, generator=generator)
    x = torch.randn(rows, hidden, generator=generator)
    y = (F.silu(x @ gate.T) * (x @ up.T)) @ down + (3.0 if bias else 0.0)
    w = torch.rand(rows, generator=generator) + 0.5
    blocks = [Rows(*parts) for parts in zip(x.split(64), y.split(64), w.split(64), strict=True)]
    loaders: list[Loader] = [lambda b=block: b for block in blocks]  # type: ignore[misc]
    noise = [0.1 * torch.randn(width, hidden, generator=generator) for _ in range(2)]
    return loaders, gate + noise[0], up + noise[1]  # type: ignore[return-value]


@pytest.mark.parametrize("bias", [False, True])
def test_it_finds_its_way_back_to_planted_neurons(bias: bool) -> None:
    loaders, gate, up = planted(bias)
    options = RefineOptions(steps=10, iterations=30, ridge=1e-8, tolerance=1e-6)
    _, _, trace = refine_gate_up(gate, up, loaders[:7], loaders[7:], F.silu, options, bias=bias)
    assert trace[-1] < 0.01 * trace[0]


def test_held_back_errors_only_fall() -> None:
    loaders, gate, up = planted()
    *_, trace = refine_gate_up(gate, up, loaders[:7], loaders[7:], F.silu, RefineOptions())
    assert len(trace) > 1
    assert all(later < earlier for earlier, later in pairwise(trace))


def test_no_steps_change_nothing() -> None:
    loaders, gate, up = planted()
    kept_gate, kept_up, trace = refine_gate_up(gate, up, loaders[:7], loaders[7:], F.silu, RefineOptions(steps=0))
    assert torch.equal(gate, kept_gate)
    assert torch.equal(up, kept_up)
    assert len(trace) == 1


def test_a_step_that_does_not_help_unseen_rows_is_refused() -> None:
    loaders, gate, up = planted()
    generator = torch.Generator().manual_seed(2)
    noise = [Rows(b.x, torch.randn(b.y.shape, generator=generator), b.w) for b in (load() for load in loaders)]
    unlearnable: list[Loader] = [lambda b=block: b for block in noise]  # type: ignore[misc]
    _, _, trace = refine_gate_up(gate, up, unlearnable[:1], unlearnable[1:], F.silu, RefineOptions())
    assert trace == sorted(trace, reverse=True)


def test_the_activation_may_be_any_smooth_function() -> None:
    loaders, gate, up = planted()
    *_, trace = refine_gate_up(gate, up, loaders[:7], loaders[7:], F.gelu, RefineOptions())
    assert trace[-1] < trace[0]


def test_what_is_held_in_memory_does_not_move_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    loaders, gate, up = planted()
    found = refine_gate_up(gate, up, loaders[:7], loaders[7:], F.silu, RefineOptions())
    for room in (0, 20_000):
        monkeypatch.setattr(refine, "KEPT_BYTES", room)
        again = refine_gate_up(gate, up, loaders[:7], loaders[7:], F.silu, RefineOptions())
        assert torch.equal(found[0], again[0])
        assert torch.equal(found[1], again[1])


@pytest.mark.parametrize(("device", "precision"), [("cuda", "high"), ("cpu", "highest")])
def test_only_the_search_for_a_step_is_coarse_and_only_on_a_gpu(device: str, precision: str) -> None:
    with pytest.raises(ArithmeticError), _tensor_cores(torch.device(device)):  # noqa: PT012
        assert torch.get_float32_matmul_precision() == precision
        raise ArithmeticError
    assert torch.get_float32_matmul_precision() == "highest"
