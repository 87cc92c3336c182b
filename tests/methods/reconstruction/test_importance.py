"""Which directions of the residual stream matter, against autograd through the whole model of transformers."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import FAMILIES, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import Checkpoint
from llmfold.data.tokens import TokenBudget
from llmfold.methods.dense import Measurement
from llmfold.methods.reconstruction.importance import PARTS, TOKENS, Importance, metric_of, sequences_for
from llmfold.models import Role, tensor_name
from llmfold.models.context import Context
from llmfold.models.tying import running_shape

SEED = 3
CPU = torch.device("cpu")


class Setup:
    """A model on some tokens, of which the first sequences count."""

    def __init__(self, model: Path, work: Path, tokens: Tensor, sequences: int) -> None:
        checkpoint = Checkpoint.open(model)
        shape = running_shape(checkpoint)
        context = Context(shape)
        size = (len(tokens), tokens.shape[1])
        measurement = Measurement(context, lambda: context.embed(checkpoint, tokens, CPU), size, work, CPU)
        self.layers, self._checkpoint, self._shape = len(shape.layers), checkpoint, shape
        output = partial(context.ends, checkpoint, CPU)
        self.importance = Importance(measurement, output, sequences, SEED)

    def read(self, index: int) -> dict[Role, Tensor]:
        roles = self._shape.layer_roles(self._shape.layers[index])
        return {role: self._checkpoint.read(tensor_name(index, role)) for role, _ in roles}

    def metrics(self) -> list[Tensor]:
        with torch.no_grad():  # as the engine calls it
            self.importance.ready(self.read, lambda stage: None)
        return [self.importance.metric(index, part) for index in range(self.layers) for part in PARTS]


def naive(folder: Path, tokens: Tensor) -> list[Tensor]:
    """E[g gᵀ] after every attention and every layer, by one backward pass; labels are drawn a chunk at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    states: list[Tensor] = []

    def keep(state: Tensor) -> None:
        state.retain_grad()
        states.append(state)

    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda module, inputs: keep(inputs[0]))
        layer.register_forward_hook(lambda module, inputs, output: keep(output))
    logits = model(tokens, use_cache=False).logits
    labels = []
    for start in range(0, len(tokens), 8):
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + start)
        p = logits[start : start + 8].detach().flatten(0, 1).softmax(-1)
        labels.append(torch.multinomial(p, 1, generator=generator).flatten())
    F.cross_entropy(logits.flatten(0, 1), torch.cat(labels), reduction="sum").backward()
    found = []
    for h in states:
        assert h.grad is not None
        rows = h.grad.flatten(0, 1)
        found.append((rows.T @ rows).double() / len(rows))
    return found


def some_tokens(sequences: int, length: int) -> Tensor:
    return torch.randint(0, 64, (sequences, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_metrics_are_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    model, tokens = tiny_model(tmp_path / "m", family), some_tokens(16, 12)
    metrics = Setup(model, tmp_path / "work", tokens, 12).metrics()
    for metric, moment in zip(metrics, naive(model, tokens[:12]), strict=True):
        expected = metric_of(moment)
        torch.testing.assert_close(metric, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_metrics_are_computed_once_and_leave_no_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "m")
    setup = Setup(model, tmp_path / "work", some_tokens(2, 12), 1)
    first = setup.metrics()
    monkeypatch.setattr("llmfold.methods.reconstruction.importance.Importance._compute", None)
    again = Setup(model, tmp_path / "work", some_tokens(2, 12), 1).metrics()
    assert all(map(torch.equal, first, again))
    assert len([p for p in (tmp_path / "work").rglob("*") if p.is_file()]) == 2 * setup.layers


def test_what_fits_at_once_changes_rounding_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model(tmp_path / "m"), some_tokens(16, 12)
    expected = Setup(model, tmp_path / "whole", tokens, 16).metrics()
    monkeypatch.setattr("llmfold.methods.reconstruction.importance.CHUNK", 3)
    for found, metric in zip(Setup(model, tmp_path / "parts", tokens, 16).metrics(), expected, strict=True):
        torch.testing.assert_close(found, metric, rtol=1e-3, atol=1e-4 * float(metric.abs().max()))


def test_what_an_interrupted_pass_has_left_is_made_anew(tmp_path: Path) -> None:
    model, tokens = tiny_model(tmp_path / "m"), some_tokens(8, 12)
    expected = Setup(model, tmp_path / "whole", tokens, 8).metrics()
    setup, said = Setup(model, tmp_path / "work", tokens, 8), []

    def stop(stage: str) -> None:
        said.append(stage)
        if "back" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        setup.importance.ready(setup.read, stop)
    assert len(said) == setup.layers + 1
    assert all(map(torch.equal, setup.metrics(), expected))


def test_the_metric_is_never_blind() -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    moment = rows.T @ rows
    metric = metric_of(moment)
    floor = 0.01 * moment.diagonal().mean() * torch.eye(6).double()
    torch.testing.assert_close(metric @ metric.T, moment + floor)
    assert torch.isfinite(metric_of(torch.zeros(4, 4))).all()


@pytest.mark.parametrize(("sequences", "length", "expected"), [(1, 512, 1), (16, 64, 8), (1024, 512, TOKENS // 512)])
def test_half_of_the_sequences_count_and_no_more_than_the_limit(sequences: int, length: int, expected: int) -> None:
    assert sequences_for(TokenBudget(sequences, length)) == expected


def test_gradients_at_the_end_average_to_nothing_and_need_not_all_logits_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(tiny_model(tmp_path / "m"))
    shape = running_shape(checkpoint)
    output = Context(shape).ends(checkpoint, CPU)
    states = torch.randn(1, shape.hidden, generator=torch.Generator().manual_seed(1)).expand(4096, -1)

    def found() -> Tensor:
        return output.gradients(states, torch.Generator().manual_seed(0))

    gradients = found()
    spread = gradients.std(0) / 64
    assert float((gradients.mean(0).abs() / spread.clamp_min(1e-12)).max()) < 5
    monkeypatch.setattr("llmfold.models.casting.BLOCK_BYTES", 7 * 4 * shape.hidden)
    torch.testing.assert_close(found(), gradients, rtol=1e-4, atol=1e-5)
