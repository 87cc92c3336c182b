"""What whole blocks lose, against the whole model of transformers without them; and what the repair gives back."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support import FAMILIES, edit_tensors, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import Checkpoint
from llmfold.methods.base import Weights, read_layer
from llmfold.methods.dense import Measurement
from llmfold.methods.reconstruction import streams as module
from llmfold.methods.reconstruction.blocks import Blocks, _Absorbing
from llmfold.methods.reconstruction.streams import Streams
from llmfold.models.context import Context
from llmfold.models.tying import running_shape
from llmfold.runtime.hidden_states import STATE_FOLDER

CPU = torch.device("cpu")
LAYERS, SEQUENCES, LENGTH, JUDGED = 4, 40, 9, 2
ADDING = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS", JUDGED * LENGTH)


def tokens() -> Tensor:
    return torch.randint(0, 64, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))


def blocks_of(folder: Path, work: Path) -> tuple[Blocks, partial[dict[str, Tensor]]]:
    """Blocks of a model on some tokens, and what reads its layers."""
    checkpoint = Checkpoint.open(folder)
    shape, found = running_shape(checkpoint), tokens()
    context = Context(shape)
    start = partial(context.embed, checkpoint, found, CPU)
    measurement = Measurement(context, start, (SEQUENCES, LENGTH), work, CPU)
    streams = Streams(measurement, partial(context.ends, checkpoint, CPU))
    return Blocks(measurement, streams, {}), partial(read_layer, checkpoint, shape)


def losses(folder: Path, work: Path) -> list[float | None]:
    blocks, read = blocks_of(folder, work)
    with torch.no_grad():
        found = blocks.losses(read, lambda _: None)
    assert not [path for path in (work / STATE_FOLDER).iterdir() if not path.name.startswith("loss-")]
    return found


def naive(folder: Path, gone: int) -> float:
    """KL divergence of the model without a block, nothing repaired, on the last sequences."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        dense = model(tokens()[-JUDGED:], use_cache=False).logits.log_softmax(-1)
        model.model.layers = nn.ModuleList(layer for i, layer in enumerate(model.model.layers) if i != gone)
        model.config.num_hidden_layers = LAYERS - 1
        found = model(tokens()[-JUDGED:], use_cache=False).logits.log_softmax(-1)
    return float((dense.exp() * (dense - found)).sum(-1).mean())


def unrepaired(self: _Absorbing) -> Weights:
    return self._layer.weights


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_whole_model(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path / "m", family, num_hidden_layers=LAYERS)
    repaired = losses(folder, tmp_path / "repaired")
    monkeypatch.setattr(_Absorbing, "weights", unrepaired)
    found = losses(folder, tmp_path / "work")
    assert found[0] is repaired[0] is None
    expected = [naive(folder, index) for index in range(1, LAYERS)]
    assert found[1:] == pytest.approx(expected, rel=1e-3)
    assert sum(loss or 0.0 for loss in repaired) < sum(expected)


def test_a_block_that_adds_nothing_goes_for_nothing(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", num_hidden_layers=LAYERS)
    edit_tensors(folder, lambda stored: [stored[f"model.layers.2.{name}"].zero_() for name in ADDING] and None)
    found = losses(folder, tmp_path / "work")
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert min(loss for index, loss in enumerate(found) if loss is not None and index != 2) > 0.01
    blocks, read = blocks_of(folder, tmp_path / "work")
    with torch.no_grad():
        repairs = blocks.repairs((2,), read, lambda _: None)
    (name,) = repairs
    assert name == "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(repairs[name], Checkpoint.open(folder).read(name))


def test_repairs_are_kept_and_named_as_if_the_blocks_had_never_been(tmp_path: Path) -> None:
    folder, work = tiny_model(tmp_path / "m", num_hidden_layers=LAYERS), tmp_path / "work"
    blocks, read = blocks_of(folder, work)
    with torch.no_grad():
        repairs = blocks.repairs((1, 3), read, lambda _: None)
    assert sorted(repairs) == [f"model.layers.{index}.mlp.down_proj.weight" for index in (0, 1)]
    told: list[str] = []
    again = blocks.repairs((1, 3), read, told.append)
    assert not told
    assert all(torch.equal(again[name], tensor) for name, tensor in repairs.items())
