"""Fisher metrics of the residual stream, against autograd through the whole model of transformers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from llmfold.methods.importance import Importance, metric_of
from support import FAMILIES, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmfold.architectures import shape_of
from llmfold.checkpoint import Checkpoint
from llmfold.streaming.forward import forward_context

SEED = 3


def importance(model: Path, work: Path, tokens: Tensor) -> Importance:
    checkpoint = Checkpoint.open(model)
    shape = shape_of(checkpoint.config)
    context = forward_context(checkpoint.config, shape)
    return Importance(checkpoint, shape, context, tokens, SEED, work, torch.device("cpu"))


def naive(folder: Path, tokens: Tensor) -> list[Tensor]:
    """E[mean(h²) g gᵀ] after every layer, by one backward pass through the model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    states: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        states.append(output)

    for layer in model.model.layers:
        layer.register_forward_hook(keep)
    logits = model(tokens, use_cache=False).logits.flatten(0, 1)
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).flatten()
    F.cross_entropy(logits, labels, reduction="sum").backward()
    found = []
    for h in states:
        assert h.grad is not None
        rows = (h.grad * h.detach().square().mean(-1, keepdim=True).sqrt()).flatten(0, 1)
        found.append((rows.T @ rows).double() / len(rows))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_metrics_are_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    model = tiny_model(tmp_path / "m", family)
    tokens = torch.randint(0, 64, (6, 12), generator=torch.Generator().manual_seed(0))
    found = importance(model, tmp_path / "work", tokens)
    with torch.no_grad():  # as the engine calls it
        metrics = [found.metric(index) for index in range(len(found.shape.layers))]
    for metric, moment in zip(metrics, naive(model, tokens), strict=True):
        torch.testing.assert_close(metric, metric_of(moment), rtol=1e-3, atol=1e-3)


def test_metrics_are_computed_once_and_leave_no_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model(tmp_path / "m"), torch.arange(24).view(2, 12)
    first = importance(model, tmp_path / "work", tokens).metric(0)
    monkeypatch.setattr(Importance, "_compute", None)
    assert torch.equal(importance(model, tmp_path / "work", tokens).metric(0), first)
    layers = len(shape_of(Checkpoint.open(model).config).layers)
    assert len([p for p in (tmp_path / "work").rglob("*") if p.is_file()]) == layers


def test_the_metric_is_relative_and_never_blind() -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    moment = rows.T @ rows
    metric = metric_of(moment)
    torch.testing.assert_close(metric @ metric.T, moment / moment.diagonal().mean() + torch.eye(6).double())
    torch.testing.assert_close(metric_of(100 * moment), metric)
    assert torch.equal(metric_of(torch.zeros(4, 4)), torch.eye(4).double())
