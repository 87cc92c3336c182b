"""What parts of layers lose, against the whole model of transformers with the same units silenced."""

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

from llmfold import FoldConfig
from llmfold.checkpoint import Checkpoint
from llmfold.methods.base import read_layer
from llmfold.methods.dense import DenseStates, Measurement
from llmfold.methods.reconstruction import streams as module
from llmfold.methods.reconstruction.held import held_back, split
from llmfold.methods.reconstruction.losses import Judged, Losses
from llmfold.methods.reconstruction.streams import SHARE, TOKENS, Streams, sequences_carried
from llmfold.models import ARCHITECTURES, LayerShape, ModelShape, Role
from llmfold.models.context import Context
from llmfold.models.tying import running_shape
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.planning.sensitivity import HALF, PARTS, Part

CPU = torch.device("cpu")
MODEL = ModelShape(ARCHITECTURES["llama"], 32, 8, 100, (LayerShape(100, 8, 4),) * 3, True, False, False, False, 2048)
KEPT = 20
ALL = None
"""In place of a layer's number."""


def narrowed(weights: dict[Role, Tensor], part: Part, features: int) -> dict[Role, Tensor]:
    """A layer whose consumer reads the first features only."""
    reader: Role = "down" if part == "neurons" else "o"
    read = weights[reader].clone()
    read[:, features:] = 0
    return {**weights, reader: read}


def config(allocation: str, attention_ratio: float | None = None) -> FoldConfig:
    return FoldConfig("m", ratio=0.2, method="self", allocation=allocation, attention_ratio=attention_ratio)


def measured(folder: Path, work: Path, tokens: Tensor, allocation: str) -> dict[tuple[int | None, Part], float | None]:
    """All losses of a model."""
    checkpoint = Checkpoint.open(folder)
    shape = running_shape(checkpoint)
    context = Context(shape)
    size = (len(tokens), tokens.shape[1])
    measurement = Measurement(context, lambda: context.embed(checkpoint, tokens, CPU), size, work, CPU)
    judged = Judged(config(allocation), shape)
    streams, states = Streams(measurement, partial(context.ends, checkpoint, CPU)), DenseStates(measurement)
    losses = Losses(streams, judged)
    read = partial(read_layer, checkpoint, shape)
    with torch.no_grad():
        for index in range(len(shape.layers)):
            states.move_to([index], read)
            inputs = states.around(index, read(index))
            losses.advance(index, inputs.weights)
            layer = shape.layers[index]
            heads = shape.head_dim * (layer.heads - layer.group_size)
            kept: dict[Part, int] = {"neurons": KEPT, "heads": heads}
            parts = {part: narrowed(read(index), part, number) for part, number in kept.items()}
            losses.begin(inputs, parts)
            losses.advance_all([index], {index: (inputs, parts)})
        losses.finish(states.after(len(shape.layers) - 1))
    assert not list(work.rglob("narrowed-*"))
    together: dict[tuple[int | None, Part], float | None] = {(ALL, part): losses.loss_together(part) for part in PARTS}
    return together | {(index, part): losses.loss(index, part) for index in range(len(shape.layers)) for part in PARTS}


def naive(folder: Path, tokens: Tensor, index: int | None, part: Part) -> float:
    """The same by the whole model, which reads nothing of the units."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        dense = model(tokens, use_cache=False).logits.log_softmax(-1)
        for layer in model.model.layers if index is ALL else [model.model.layers[index]]:
            if part == "neurons":
                layer.mlp.down_proj.weight[:, KEPT:] = 0
            else:
                reader = layer.self_attn.o_proj
                reader.weight[:, -reader.in_features // model.config.num_key_value_heads :] = 0
        found = model(tokens, use_cache=False).logits.log_softmax(-1)
    return float((dense.exp() * (dense - found)).sum(-1).mean())


@pytest.mark.parametrize("allocation", ["uniform", "adaptive"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_the_whole_model(
    tmp_path: Path, family: str, allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "m", family)
    monkeypatch.setattr(module, "TOKENS", 18)  # two sequences
    tokens = torch.randint(0, 64, (18, 9), generator=torch.Generator().manual_seed(0))
    found = measured(model, tmp_path / "work", tokens, allocation)
    assert len(found) == 6
    for (index, part), loss in found.items():
        if allocation == "uniform" and index is not ALL:
            assert loss is None
            continue
        expected = naive(model, tokens[-2:], index, part)
        assert expected > 1e-6
        assert loss == pytest.approx(expected, rel=1e-3, abs=1e-7), (index, part)


def test_a_part_that_was_not_narrowed_has_no_loss(tmp_path: Path) -> None:
    measurement = Measurement(None, lambda: iter(()), (1, 1), tmp_path, CPU)  # type: ignore[arg-type]
    losses = Losses(Streams(measurement, lambda: None), Judged(config("adaptive"), MODEL))  # type: ignore[arg-type,return-value]
    curves = Sensitivities([LayerCurves([0.0, 1.0], [0.0, 2.0])] * 3)
    assert losses.loss(0, "heads") is losses.loss_together("heads") is None
    assert losses.scaled(curves) == curves


@pytest.mark.parametrize(("heads", "neurons"), [(4.5, 4.5), (4.5, 9.0), (1.5, 9.0)])
def test_curves_predict_single_layers_and_then_all_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: float, neurons: float
) -> None:
    """But for heads, which are made no cheaper beside neurons than single layers say."""
    measurement = Measurement(None, lambda: iter(()), (1, 1), tmp_path, CPU)  # type: ignore[arg-type]
    judged = Judged(config("adaptive"), MODEL)
    losses = Losses(Streams(measurement, lambda: None), judged)  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(Losses, "loss", lambda _, index, part: {"heads": 1.0, "neurons": 0.5 + index}[part])
    monkeypatch.setattr(Losses, "loss_together", lambda _, part: {"heads": heads, "neurons": neurons}[part])
    curves = Sensitivities([LayerCurves([0.01 * n**2 for n in range(51)], [0.0, 7.0, 21.0]) for _ in range(3)])
    scaled, layers = losses.scaled(curves), MODEL.layers
    dear = max(heads / 3, neurons / 4.5)
    for part, expected in (("heads", [dear] * 3), ("neurons", [neurons / 9, neurons / 3, neurons / 1.8])):
        after = [judged.widths(part, layer) for layer in layers]  # type: ignore[arg-type]
        assert [scaled.layers[i].error(layers[i], after[i]) for i in range(3)] == pytest.approx(expected)
    assert scaled.layers[0].heads == pytest.approx([0.0, dear, 3 * dear])  # the shape of a curve stays


@pytest.mark.parametrize(
    ("allocation", "attention_ratio", "alone", "together"),
    [
        ("uniform", None, (), PARTS),
        ("uniform", 0.0, (), ()),
        ("adaptive", None, PARTS, PARTS),
        ("adaptive", 0.0, ("neurons",), ()),
    ],
)
def test_what_is_measured_is_what_the_plan_may_choose_by(
    allocation: str, attention_ratio: float | None, alone: tuple[Part, ...], together: tuple[Part, ...]
) -> None:
    judged = Judged(config(allocation, attention_ratio), MODEL)
    assert (judged.alone, judged.together) == (alone, together)


def test_neurons_go_at_the_ratio_where_layers_are_judged_alone_and_half_of_them_else() -> None:
    adaptive, uniform = (Judged(config(allocation), MODEL) for allocation in ("adaptive", "uniform"))
    layer = MODEL.layers[0]
    assert adaptive.widths("neurons", layer) == replace(layer, intermediate=80)
    assert uniform.widths("neurons", layer) == replace(layer, intermediate=100 * HALF)
    assert uniform.widths("heads", layer) == replace(layer, heads=6, kv_heads=3)
    one = replace(layer, heads=2, kv_heads=1)
    assert uniform.widths("heads", one).heads in {1, 2}  # never none


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
