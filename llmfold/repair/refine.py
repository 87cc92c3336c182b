"""Gauss-Newton refit of the kept neurons' gate and up rows, with the down projection eliminated.

Minimises ``Σ w ‖y − Dᵀ(silu(G x) ∘ U x) − b‖²`` over G and U while D and b are always their own least-squares solution
(variable projection, Golub and Pereyra 1973). A step linearises the neurons and solves the damped least-squares
problem by some conjugate-gradient iterations, so there is no learning rate; it counts only if rows that it has not
seen improve.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmfold.repair.least_squares import products, solve, summed
from llmfold.streaming.team import Team


class Rows(NamedTuple):
    """A block of rows: inputs x (t, e), targets y (t, d), weights w (t,)."""

    x: Tensor
    y: Tensor
    w: Tensor


KEPT_BYTES = 1 << 28
"""Bound on what a step holds rather than computes again at every iteration."""

Loader = Callable[[], Rows]
Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RefineOptions:
    """Settings of the refit.

    Attributes:
        steps: Gauss-Newton steps at most.
        iterations: conjugate-gradient iterations per step.
        damping: Tikhonov term, relative to the diagonal of the Gauss-Newton matrix.
        blocks_per_step: blocks of rows that one step looks at; the blocks take turns.
        tolerance: relative improvement below which it stops.
        ridge: of the least squares in between.
    """

    steps: int = 4
    iterations: int = 8
    damping: float = 1e-3
    blocks_per_step: int = 8
    tolerance: float = 2e-3
    ridge: float = 1e-3


class _Neurons(NamedTuple):
    gate: Tensor
    up: Tensor

    def plus(self, step: "_Neurons", length: float = 1.0) -> "_Neurons":
        return _Neurons(self.gate + length * step.gate, self.up + length * step.up)

    def dot(self, other: "_Neurons") -> float:
        return float((self.gate * other.gate).sum() + (self.up * other.up).sum())


class _Problem:
    """The least-squares problem at one point, block by block."""

    def __init__(
        self,
        train: Sequence[Loader],
        held: Sequence[Loader],
        activation: Activation,
        bias: bool,
        ridge: float,
        team: Team,
    ) -> None:
        self._train, self._held = train, held
        self._activation, self._bias, self._ridge, self._team = activation, bias, ridge, team

    def consumer(self, neurons: _Neurons) -> tuple[Tensor, Tensor | None]:
        """Least-squares D (k, d) and b (d,) for these neurons, from all training rows."""

        def sums(load: Loader) -> tuple[Tensor, ...]:
            rows = load()
            return products(self._neurons(rows.x, neurons), rows.y, rows.w)

        equations = summed(self._team.in_order(self._train, sums))
        weights, bias = solve(equations, self._ridge, bias=self._bias)
        return weights.float(), None if bias is None else bias.float()

    def held_error(self, neurons: _Neurons, down: Tensor, bias: Tensor | None) -> float:
        """Relative squared error on the rows held back."""

        def energies(load: Loader) -> tuple[Tensor, ...]:
            rows = load()
            rest = rows.y - self._neurons(rows.x, neurons) @ down
            if bias is not None:
                rest = rest - bias
            return (rest.square().sum(1) * rows.w).sum(), (rows.y.square().sum(1) * rows.w).sum()

        wrong = total = 0.0
        for of_rest, of_targets in self._team.in_order(self._held, energies):
            wrong += float(of_rest)
            total += float(of_targets)
        return wrong / max(total, torch.finfo(torch.float64).tiny)

    def _neurons(self, x: Tensor, neurons: _Neurons) -> Tensor:
        return self._activation(x @ neurons.gate.T) * (x @ neurons.up.T)

    def linearise(
        self, neurons: _Neurons, down: Tensor, bias: Tensor | None, blocks: Sequence[Loader]
    ) -> "_Linearised":
        return _Linearised(neurons, down, bias, blocks, self._activation, self._team)


class _Slopes(NamedTuple):
    """Inputs x (t, e) of a block and derivatives (t, k) of each neuron in u·x and in g·x, scaled by √w."""

    x: Tensor
    by_up: Tensor
    by_gate: Tensor


class _Linearised:
    """Products with the Jacobian of the outputs in gate and up, square-root weights included, over some blocks."""

    def __init__(
        self,
        neurons: _Neurons,
        down: Tensor,
        bias: Tensor | None,
        blocks: Sequence[Loader],
        activation: Activation,
        team: Team,
    ) -> None:
        self._at, self._down, self._bias = neurons, down, bias
        self._blocks, self._activation, self._team = blocks, activation, team
        self._kept: dict[int, _Slopes] = {}
        self._room = KEPT_BYTES

    def _linear(self, rows: Rows) -> tuple[_Slopes, Tensor]:
        """Slopes of a block, and its neurons scaled by √w."""
        gate = (rows.x @ self._at.gate.T).requires_grad_()
        with torch.enable_grad():
            value = self._activation(gate)
            (slope,) = torch.autograd.grad(value.sum(), gate)
        up, root = rows.x @ self._at.up.T, rows.w.sqrt()[:, None]
        by_up = value.detach() * root
        return _Slopes(rows.x, by_up, slope.mul_(up).mul_(root)), by_up * up

    def _keep(self, index: int, slopes: _Slopes) -> None:
        """Hold the slopes of the first blocks, as many as there is room for; the others are computed anew."""
        self._room -= sum(t.nbytes for t in slopes)
        if self._room >= 0:
            self._kept[index] = slopes

    def gradient_and_diagonal(self) -> tuple[_Neurons, _Neurons]:
        """Jᵀr at this point, and an estimate of the diagonal of JᵀJ."""
        strength = self._down.square().sum(1)

        def part(index: int) -> tuple[Tensor, ...]:
            rows = self._blocks[index]()
            slopes, neurons = self._linear(rows)
            self._keep(index, slopes)
            rest = rows.y * rows.w.sqrt()[:, None] - neurons @ self._down
            if self._bias is not None:
                rest -= rows.w.sqrt()[:, None] * self._bias
            x, by_up, by_gate = slopes
            back, inputs = rest @ self._down.T, x.square().sum(0)
            return (
                (by_gate * back).T @ x,
                (by_up * back).T @ x,
                (strength * by_gate.square().mean(0))[:, None] * inputs,
                (strength * by_up.square().mean(0))[:, None] * inputs,
            )

        by_gate, by_up, of_gate, of_up = self._summed(part)
        return _Neurons(by_gate, by_up), _Neurons(of_gate, of_up)

    def normal_product(self, step: _Neurons) -> _Neurons:
        """JᵀJ times a step."""

        def part(index: int) -> tuple[Tensor, ...]:
            x, by_up, by_gate = self._kept[index] if index in self._kept else self._linear(self._blocks[index]())[0]
            moved = (x @ step.up.T).mul_(by_up)
            moved += (x @ step.gate.T).mul_(by_gate)
            back = (moved @ self._down) @ self._down.T
            return (by_gate * back).T @ x, back.mul_(by_up).T @ x

        return _Neurons(*self._summed(part))

    def _summed(self, part: Callable[[int], tuple[Tensor, ...]]) -> list[Tensor]:
        """Float32 sums over the blocks."""
        total: list[Tensor] = []
        for found in self._team.in_order(range(len(self._blocks)), part):
            total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
        return total


@contextmanager
def _tensor_cores(device: torch.device) -> Iterator[None]:
    """On a GPU, factors of 11 bits and float32 sums: what finds a step. Float32 alone decides whether it counts."""
    if device.type != "cuda":
        yield
        return
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(usual)


def _conjugate_gradients(problem: _Linearised, options: RefineOptions) -> _Neurons:
    """Approximate solution of the damped normal equations, preconditioned by their diagonal."""
    rest, diagonal = problem.gradient_and_diagonal()
    damping = _Neurons(*(options.damping * (h + h.mean()) for h in diagonal))
    scale = _Neurons(*((h + t).clamp_min(1e-30) for h, t in zip(diagonal, damping, strict=True)))
    step = _Neurons(torch.zeros_like(rest.gate), torch.zeros_like(rest.up))
    direction = _Neurons(rest.gate / scale.gate, rest.up / scale.up)
    energy = rest.dot(direction)
    for _ in range(options.iterations):
        with _tensor_cores(rest.gate.device):
            product = problem.normal_product(direction)
        product = product.plus(_Neurons(damping.gate * direction.gate, damping.up * direction.up))
        curvature = direction.dot(product)
        if not curvature > 0:
            break
        length = energy / curvature
        step, rest = step.plus(direction, length), rest.plus(product, -length)
        eased = _Neurons(rest.gate / scale.gate, rest.up / scale.up)
        renewed = rest.dot(eased)
        direction, energy = eased.plus(direction, renewed / energy), renewed
    return step


def refine_gate_up(
    gate: Tensor,
    up: Tensor,
    train: Sequence[Loader],
    held: Sequence[Loader],
    activation: Activation,
    options: RefineOptions,
    *,
    bias: bool = False,
    team: Team | None = None,
) -> tuple[Tensor, Tensor, list[float]]:
    """Refit gate and up rows (k, e) float32; biases are their last column, met by a column of ones in x.

    Args:
        gate: rows to start from.
        up: rows to start from.
        train: loaders of the training blocks, at least one.
        held: loaders of the blocks held back, at least one; they decide whether a step counts.
        activation: of the gate, elementwise.
        options: see :class:`RefineOptions`.
        bias: whether the consumer has a bias.
        team: the processes that share the blocks.

    Returns:
        Gate, up, and the relative held-back errors: before, then after each step that counted.
    """
    problem = _Problem(train, held, activation, bias, options.ridge, team or Team())
    best = _Neurons(gate, up)
    down, offset = problem.consumer(best)
    trace = [problem.held_error(best, down, offset)]
    count = min(options.blocks_per_step, len(train))
    for index in range(options.steps):
        blocks = [train[(index * count + j) % len(train)] for j in range(count)]
        step = _conjugate_gradients(problem.linearise(best, down, offset, blocks), options)
        for length in (1.0, 0.5, 0.25):
            candidate = best.plus(step, length)
            new_down, new_offset = problem.consumer(candidate)
            error = problem.held_error(candidate, new_down, new_offset)
            if error < trace[-1]:
                break
        else:
            break
        best, down, offset = candidate, new_down, new_offset
        gain = trace[-1] - error
        trace.append(error)
        if gain < options.tolerance * error:
            break
    return best.gate, best.up, trace
