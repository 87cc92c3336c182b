"""The unit that times are stated in."""

from typing import Any

import pytest
import torch
from shapes import shape_with_stock

from llmfold.models.context import Context
from llmfold.pipeline import forward_pass as unit
from llmfold.planning.cost import forward_flops

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}


def test_a_pass_is_timed_on_part_of_a_layer_and_scaled_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(shape_with_stock(CONFIG))
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 25.0, 30.0, 32.0])
    monkeypatch.setattr(unit.time, "perf_counter", lambda: next(ticks))
    few, many = (unit.forward_pass_seconds(context, n, 16, torch.device("cpu")) for n in (128, 1280))
    shape = context.shape
    layers = forward_flops(shape, 128, 16) - 2 * 128 * shape.vocabulary * shape.hidden
    assert few == pytest.approx(2 * 3 * forward_flops(shape, 128, 16) / layers)
    assert many == pytest.approx(10 * few)


def test_wide_models_are_timed_on_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit, "_PROBE_FLOPS", 1e5)
    seen: list[torch.Size] = []
    layer = Context.layer

    def spied(self: Context, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(x.shape)
        return layer(self, x, *rest)

    monkeypatch.setattr(Context, "layer", spied)
    assert unit.forward_pass_seconds(Context(shape_with_stock(CONFIG)), 1024, 64, torch.device("cpu")) > 0
    assert set(seen) == {(1, 16, 32)}
