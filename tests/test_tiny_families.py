"""eval/families: tiny checkpoints of any type that transformers loads as a causal language model."""

import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, file_hashes

sys.path.insert(0, str(ROOT / "eval" / "families"))
import tiny  # type: ignore[import-not-found]
from overrides import ENCODERS, OVERRIDES, SEQUENCE_TO_SEQUENCE, UNBUILDABLE, WHOLE_CLASS  # type: ignore[import-not-found]
from shrinking import shrink  # type: ignore[import-not-found]


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "gemma3_text"])
def test_a_tiny_checkpoint_reloads_strictly_and_computes_the_same(tmp_path: Path, model_type: str) -> None:
    assert tiny.proof(model_type, tmp_path) == []
    assert (tmp_path / "model.safetensors").stat().st_size < 500_000


def test_the_proof_notices_a_model_that_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_life(model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False).zero_()

    monkeypatch.setattr(tiny, "_enliven", without_life)
    assert any("flat" in wrong for wrong in tiny.proof("gpt2", tmp_path))


def test_the_seed_decides_every_bit_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        tiny.tiny_checkpoint("gpt2", tmp_path / name, seed)
    first, again, other = (file_hashes(tmp_path / name)["model.safetensors"] for name in ("first", "again", "other"))
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_a_hybrid_keeps_a_layer_of_each_kind() -> None:
    config = {
        "num_hidden_layers": 8,
        "layer_types": ["sliding"] * 5 + ["full"] * 3,
        "mlp_layer_types": ["dense"] + ["sparse"] * 7,
        "hidden_size": 4096,
        "vocab_size": 50_000,
        "eos_token_id": 49_999,
    }
    small = shrink(config)
    assert list(zip(small["layer_types"], small["mlp_layer_types"], strict=True)) == [
        ("sliding", "dense"),
        ("sliding", "sparse"),
        ("full", "sparse"),
    ]
    assert small["num_hidden_layers"] == 3
    assert small["eos_token_id"] < small["vocab_size"]
    assert config["num_hidden_layers"] == 8


def test_a_layer_with_sizes_of_its_own_keeps_their_proportion() -> None:
    config = {"num_hidden_layers": 8, "head_dim": 256, "per_layer_config": {"5": {"head_dim": 512}}}
    small = shrink(config)
    assert small["per_layer_config"] == {"2": {"head_dim": 2 * small["head_dim"]}}


def test_what_cannot_be_built_gives_its_reason() -> None:
    with pytest.raises(ValueError, match="timm"):
        tiny.tiny_model("gemma3n", 0)


def test_tables_name_types_that_exist() -> None:
    named = {*OVERRIDES, *WHOLE_CLASS, *UNBUILDABLE, *ENCODERS, *SEQUENCE_TO_SEQUENCE}
    assert named <= {*tiny.MODEL_TYPES, *tiny.WRAPPERS}
    assert not set(ENCODERS) & set(SEQUENCE_TO_SEQUENCE)
