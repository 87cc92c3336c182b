from types import SimpleNamespace
from typing import Any

import pytest
import torch
from folding.builders import VARIANTS, model_logits, raw_config, relative, state_of, stock_logits, stock_model
from reference_forward import reference, rms_norm, rotate

from llmfold.errors import CheckpointError
from llmfold.models import shape_of
from llmfold.models.family_settings import family_settings, rope_parameters

TOKENS = (torch.arange(48).view(2, 24) * 13 + 5) % 48
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "factor": 2.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}
WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-window-of-one": ("mistral", {"sliding_window": 1}),
    "qwen2-window-in-the-last-layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen2-window-everywhere": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "qwen2-window-not-in-use": ("qwen2", {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0}),
    "qwen3-window": ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
}
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": ("llama", {"rope_parameters": LINEAR}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "longrope-within": ("llama", {"rope_parameters": {**LONG, "original_max_position_embeddings": 24}}),
    "longrope-beyond": ("llama", {"rope_parameters": {**LONG, "original_max_position_embeddings": 23}}),
    "dynamic-beyond": ("mistral", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN, "head_dim": 12}),
    "mistral-theta": ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 17.0}}),
    "gelu": ("llama", {"hidden_act": "gelu", "rms_norm_eps": 1e-2}),
}
CASES = VARIANTS | WINDOWS | ROPES


def both(family: str, fields: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    raw = raw_config(family, **fields)
    model = stock_model(raw)
    return model_logits(raw, shape_of(raw), state_of(model), TOKENS), stock_logits(model, TOKENS)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_stock_transformers(case: str) -> None:
    ours, stock = both(*CASES[case])
    assert relative(ours, stock) < 1e-5


@pytest.mark.parametrize(
    "case", [c for c in WINDOWS if c != "qwen2-window-not-in-use"] + ["llama3", "linear", "yarn", "longrope-beyond"]
)
def test_windows_and_rope_scaling_are_seen(case: str) -> None:
    family, fields = CASES[case]
    raw = raw_config(family, **fields)
    plain = {key: value for key, value in raw.items() if key not in ("sliding_window", "layer_types", *fields)}
    plain["sliding_window"] = None
    model = stock_model(raw)
    ours = model_logits(plain, shape_of(plain), state_of(model), TOKENS)
    assert relative(ours, stock_logits(model, TOKENS)) > 1e-2


@pytest.mark.parametrize("scaling", [LLAMA3, LINEAR, YARN])
def test_older_spelling_of_rope_means_the_same(scaling: dict[str, Any]) -> None:
    raw = raw_config("llama", rope_parameters=scaling)
    older = {key: value for key, value in raw.items() if key != "rope_parameters"}
    older["rope_theta"] = scaling["rope_theta"]
    older["rope_scaling"] = {key: value for key, value in scaling.items() if key != "rope_theta"}
    oldest = {**older, "rope_scaling": {**older["rope_scaling"], "type": scaling["rope_type"]}}
    del oldest["rope_scaling"]["rope_type"]
    expected = family_settings(raw, shape_of(raw))
    for spelling in (older, oldest):
        found = family_settings(spelling, shape_of(spelling))
        assert torch.equal(found.frequencies, expected.frequencies)
        assert found.rotary_scale == expected.rotary_scale


def test_configs_of_transformers_4_carry_rope_as_two_attributes() -> None:
    scaled = SimpleNamespace(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    old, plain = rope_parameters(scaled), rope_parameters(SimpleNamespace())
    assert old == {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    assert plain == {"rope_theta": 10000.0, "rope_type": "default"}


def test_rotation_keeps_norms_and_sees_relative_positions_only() -> None:
    raw = raw_config("llama")
    context = reference(raw, shape_of(raw))
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    q, k = (rotate(x.expand(1, 1, 9, 8), context) for x in (q[None], k[None]))
    assert torch.allclose(q.norm(dim=-1), q.norm(dim=-1)[..., :1].expand(1, 1, 9))
    scores = (q @ k.transpose(-1, -2))[0, 0]
    for offset in range(-8, 9):
        diagonal = scores.diagonal(offset)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    assert float(scores[0].std()) > 1e-2


def test_rms_norm_of_narrow_dtypes_is_computed_in_float32() -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) * 300
    gain = torch.linspace(0.5, 2, 64)
    exact = gain.double() * x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(rms_norm(x, gain, 1e-6).double(), exact, rtol=1e-6)
    half = rms_norm(x.half(), gain.half(), 1e-6)
    assert half.dtype == torch.float16
    assert torch.allclose(half.double(), exact, rtol=3e-3)


def test_an_unknown_rotary_variant_is_named() -> None:
    raw = raw_config("llama", rope_parameters={"rope_type": "unheard-of", "rope_theta": 1.0})
    with pytest.raises(CheckpointError, match=r"rope_type 'unheard-of' .* not supported; supported are .*llama3"):
        family_settings(raw, shape_of(raw))
