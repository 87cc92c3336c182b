"""What stock transformers cannot load or run is told at opening; what is taken for plain it does load."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CONFIG, FAMILIES, INDEX, edit_json, edit_tensors, fold, logits, tiny_model

from llmfold.models.plain import plain_generation, plain_settings
from llmfold.models.stock_build import check_generation_config, check_stock_builds

Cli = Callable[..., tuple[int, str, str]]
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 64, 0.0, 0.5, 2.0, "x", "silu", [], [2], {}, {"rope_type": "x"})
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default", "rope_theta": 10000},
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 32, "rope_theta": 10000.0},
    {"rope_type": ["default"]},
)


def refused(llmfold: Cli, model: Path, space: Path, *words: str) -> None:
    for command in ("fold", "plan"):
        code, _, stderr = llmfold(command, "--model", model, "--ratio", 0.2, "--output", space / "out")
        assert (code, stderr.count("\n"), "llmfold: unexpected" in stderr) == (1, 1, False), stderr
        for word in words:
            assert word in stderr
    assert os.listdir(space) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_builds_every_config_that_is_taken_for_plain(tmp_path: Path, family: str) -> None:
    sound = json.loads((tiny_model(tmp_path / "m", family, num_hidden_layers=1) / CONFIG).read_text())
    del sound["dtype"]  # whose words are asked after by themselves
    plain = [sound | {key: value} for key in sound for value in (*VALUES, *ROPES)]
    plain += [{k: v for k, v in sound.items() if k != key} for key in sound]
    plain = [config for config in plain if plain_settings(config) is not None]
    assert len(plain) > 40
    for config in plain:
        check_stock_builds(config)


def test_transformers_takes_every_generation_config_that_is_taken_for_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = (
        "output_attentions",
        "bos_token_id",
        "eos_token_id",
        "do_sample",
        "use_cache",
        "temperature",
        "top_p",
        "top_k",
        "max_length",
    )
    plain = [{key: value} for key in (*keys, "max_new_tokens", "repetition_penalty", "no_such") for value in VALUES]
    plain = [settings for settings in plain if plain_generation(settings)]
    assert len(plain) > 15
    monkeypatch.setattr("llmfold.models.stock_build.plain_generation", lambda settings: False)
    for settings in plain:
        check_generation_config(settings, Path("generation_config.json"))


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("qwen3", {"rms_norm_eps": 1}, ("config.json", "rms_norm_eps")),
        ("llama", {"initializer_range": 0}, ("config.json", "initializer_range")),
        ("llama", {"pad_token_id": 64}, ("config.json", "Padding_idx")),
        ("llama", {"text_config": {}}, ("config.json", "correct the setting")),
        ("llama", {"_attn_implementation": "x"}, ("config.json", "attn_implementation")),
        ("llama", {"return_dict": False}, ("return_dict in config.json is false", "remove it")),
        ("llama", {"model_type": ["llama"]}, ("which is no name",)),
        ("llama", {"per_layer_config": []}, ("per_layer_config in config.json",)),
        ("mistral", {"layer_types": ["full_attention"] * 2, "head_dim": "gone"}, ("config.json", "NoneType")),
        ("llama", {"rope_parameters": {"rope_theta": "1"}}, ("rotary parameters in config.json",)),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ("config.json", "low_freq_factor")),
        ("llama", {"rope_scaling": {"type": "linear"}, "rope_parameters": None}, ("config.json", "factor")),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            ("config.json turns 4 of the 8 dimensions", "remove partial_rotary_factor"),
        ),
    ],
    ids=str,
)
def test_settings_that_stop_transformers_are_told_at_opening(
    llmfold: Cli, tmp_path: Path, space: Path, family: str, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    model = tiny_model(tmp_path / "m", family)
    config = {k: v for k, v in {**json.loads((model / CONFIG).read_text()), **fields}.items() if v != "gone"}
    (model / CONFIG).write_text(json.dumps(config))
    refused(llmfold, model, space, *words)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_return_sequences": 3},
        {"early_stopping": 3},
        {"compile_config": 3},
        {"watermarking_config": {"x": 1}},
        {"cache_implementation": "x"},
    ],
    ids=str,
)
def test_a_generation_config_that_transformers_refuses(
    llmfold: Cli, model: Path, space: Path, fields: Mapping[str, Any]
) -> None:
    edit_json(model / "generation_config.json", **fields)
    refused(llmfold, model, space, "generation_config.json is refused by transformers", "or remove the file")


@pytest.mark.parametrize("metadata", [None, 3])
def test_an_index_without_metadata(llmfold: Cli, tmp_path: Path, space: Path, metadata: object) -> None:
    model = tiny_model(tmp_path / "m", shards=2)
    edit_json(model / INDEX, metadata=metadata)
    refused(llmfold, model, space, f"{INDEX} has no metadata", 'add "metadata": {}')


def test_a_tensor_that_transformers_drops_is_named_with_the_remedy(llmfold: Cli, model: Path, space: Path) -> None:
    edit_tensors(model, lambda stored: stored.update({"score.weight": torch.ones(1, 32)}))
    refused(llmfold, model, space, "score.weight is not part of LlamaForCausalLM: remove it")


@pytest.mark.parametrize("fields", [{"max_position_embeddings": None}, {"dtype": {"": "float32"}}], ids=str)
def test_configs_that_transformers_reads_are_read(tmp_path: Path, fields: dict[str, Any]) -> None:
    source = tiny_model(tmp_path / "m", "qwen3")
    edit_json(source / CONFIG, **fields)
    fold(source, ratio=0, output=tmp_path / "out")
    tokens = torch.arange(12)[None]
    assert torch.equal(logits(tmp_path / "out", tokens), logits(source, tokens))
