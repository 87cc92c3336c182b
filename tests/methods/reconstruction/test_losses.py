"""What single layers lose, against the whole model of transformers with the same units silenced."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import FAMILIES, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import Checkpoint
from llmfold.folding.heads import joined, unit_views
from llmfold.methods.base import read_layer
from llmfold.methods.dense import DenseStates, Measurement
from llmfold.methods.reconstruction import losses as module
from llmfold.methods.reconstruction.held import held_back, split
from llmfold.methods.reconstruction.importance import PARTS, Part
from llmfold.methods.reconstruction.losses import SHARE, TOKENS, SingleLosses, sequences_carried
from llmfold.models import LayerShape, Role
from llmfold.models.context import Context
from llmfold.models.stock_shape import StockShape
from llmfold.models.tying import running_shape
from llmfold.planning import LayerCurves

CPU = torch.device("cpu")
KEPT = 20


def narrowed(shape: StockShape, weights: dict[Role, Tensor], part: Part) -> tuple[dict[Role, Tensor], LayerShape]:
    """A layer with its first neurons only, or without its last group of heads."""
    layer = shape.layers[0]
    if part == "neurons":
        cut = {role: weights[role][:KEPT] for role in ("gate", "up")}
        return {**weights, **cut, "down": weights["down"][:, :KEPT]}, replace(layer, intermediate=KEPT)
    heads = shape.couplings(layer).heads
    assert heads is not None
    views = unit_views(heads, weights, layer, layer.head_units)
    left = {role: joined(heads, role, view[:-1]) for role, view in views.items()}
    return {**weights, **left}, layer.with_units(layer.intermediate, layer.head_units - 1)


def measured(folder: Path, work: Path, tokens: Tensor) -> dict[tuple[int, Part], float | None]:
    """All losses of a model."""
    checkpoint = Checkpoint.open(folder)
    shape = running_shape(checkpoint)
    context = Context(shape)
    size = (len(tokens), tokens.shape[1])
    measurement = Measurement(context, lambda: context.embed(checkpoint, tokens, CPU), size, work, CPU)
    losses, states = SingleLosses(measurement, partial(context.ends, checkpoint, CPU)), DenseStates(measurement)
    read = partial(read_layer, checkpoint, shape)
    with torch.no_grad():
        for index in range(len(shape.layers)):
            states.move_to([index], read)
            inputs = states.around(index, read(index))
            losses.advance(index, inputs.weights)
            for part in PARTS:
                losses.add(part, inputs, *narrowed(shape, read(index), part))
        losses.finish(states.after(len(shape.layers) - 1))
    assert not list(work.rglob("single-*"))
    return {(index, part): losses.loss(index, part) for index in range(len(shape.layers)) for part in PARTS}


def naive(folder: Path, tokens: Tensor, index: int, part: Part) -> float:
    """The same by the whole model, which reads nothing of the units."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        dense = model(tokens, use_cache=False).logits.log_softmax(-1)
        layer = model.model.layers[index]
        if part == "neurons":
            layer.mlp.down_proj.weight[:, KEPT:] = 0
        else:
            config = model.config
            layer.self_attn.o_proj.weight[:, -layer.self_attn.o_proj.in_features // config.num_key_value_heads :] = 0
        found = model(tokens, use_cache=False).logits.log_softmax(-1)
    return float((dense.exp() * (dense - found)).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_whole_model(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "m", family)
    monkeypatch.setattr(module, "TOKENS", 18)  # two sequences
    tokens = torch.randint(0, 64, (18, 9), generator=torch.Generator().manual_seed(0))
    found = measured(model, tmp_path / "work", tokens)
    assert len(found) == 4
    for (index, part), loss in found.items():
        expected = naive(model, tokens[-2:], index, part)
        assert expected > 1e-6
        assert loss == pytest.approx(expected, rel=1e-3, abs=1e-7), (index, part)


def test_a_part_that_was_not_narrowed_has_no_loss(tmp_path: Path) -> None:
    measurement = Measurement(None, lambda: iter(()), (1, 1), tmp_path, CPU)  # type: ignore[arg-type]
    assert SingleLosses(measurement, lambda: None).loss(0, "heads") is None  # type: ignore[arg-type,return-value]


def test_curves_go_through_what_was_measured_and_stay_where_nothing_was() -> None:
    curves = LayerCurves([0.0, 1.0, 3.0, 6.0], [0.0, 2.0])
    assert curves.through((2, 1.5), (1, None)) == LayerCurves([0.0, 0.5, 1.5, 3.0], [0.0, 2.0])
    assert curves.through((0, 1.5), (1, 4.0)) == LayerCurves([0.0, 1.0, 3.0, 6.0], [0.0, 4.0])
    assert LayerCurves([0.0], [0.0]).through((3, 0.3), (1, 1.0)) == LayerCurves([0.0], [0.0])


@pytest.mark.parametrize(
    ("sequences", "length", "carried"),
    [
        *((1, 9, 1), (3, 9, 1), (64, 256, TOKENS // 256), (64, 128, 8), (128, 512, TOKENS // 512)),
        *((512, 512, 512 // SHARE), (100, 3000, 3)),
    ],
)
def test_some_of_the_last_sequences_are_carried(sequences: int, length: int, carried: int) -> None:
    assert sequences_carried(sequences, length) == carried


@given(st.integers(1, 300), st.integers(1, 8))
def test_sequences_are_fitted_on_or_held_back_and_what_is_carried_is_held_back(sequences: int, chunk: int) -> None:
    fitted, judging = split(sequences, chunk)
    assert [i for part in (*fitted, *judging) for i in range(part.start, part.stop)] == list(range(sequences))
    assert all(part.stop - part.start <= chunk for part in (*fitted, *judging))
    judged = sum(part.stop - part.start for part in judging)
    assert judged == held_back(sequences)
    assert judged == 0 if sequences == 1 else 0 < judged <= sequences / 2
    assert sequences_carried(sequences, 7) <= judged or sequences == 1
