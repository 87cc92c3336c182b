"""Tensors under other names, and words in config.json: used as stock does, or named for what they are."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CONFIG, edit_json, edit_tensors, fold, logits, tensors, tiny_model

Cli = Callable[..., tuple[int, str, str]]
Rename = Callable[[str], str]
TOKENS = torch.arange(12)[None]


def rename(folder: Path, name: Rename) -> None:
    def change(stored: dict[str, torch.Tensor]) -> None:
        for old in list(stored):
            stored[name(old)] = stored.pop(old)

    edit_tensors(folder, change)


READ: dict[str, Rename] = {
    "none": lambda name: name.removeprefix("model."),
    "doubled": lambda name: f"model.{name}",
}
REFUSED: dict[str, tuple[Rename, str]] = {
    "peft": (lambda name: f"base_model.model.{name}", "'base_model.model.'"),
    "data parallel": (lambda name: f"module.{name}", "'module.'"),
    "compiled": (lambda name: f"_orig_mod.{name}", "'_orig_mod.'"),
    "multimodal": (lambda name: name.replace("model.", "model.language_model.", 1), "'model.language_model.'"),
    "wrapped": (lambda name: f"language_model.{name}", "'language_model.'"),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", READ)
def test_names_that_stock_renames_are_read_alike(case: str, tied: bool, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", tie_word_embeddings=tied)
    names, dense = set(tensors(source)), logits(source, TOKENS)
    rename(source, READ[case])
    torch.testing.assert_close(logits(source, TOKENS), dense)
    fold(source, ratio=0, output=tmp_path / "out")
    assert set(tensors(tmp_path / "out")) == names
    torch.testing.assert_close(logits(tmp_path / "out", TOKENS), dense)


def test_a_tensor_under_two_names_is_refused(llmfold: Cli, model: Path, space: Path) -> None:
    edit_tensors(model, lambda stored: stored.update({"norm.weight": torch.ones(32)}))
    refused(llmfold, model, space, "twice, as model.norm.weight and norm.weight")


def refused(llmfold: Cli, model: Path, space: Path, *words: str) -> None:
    for command in ("fold", "plan"):
        code, _, stderr = llmfold(command, "--model", model, "--ratio", 0.2, "--output", space / "out")
        assert (code, stderr.count("\n")) == (1, 1), stderr
        for word in words:
            assert word in stderr
    assert os.listdir(space) == []


@pytest.mark.parametrize("case", REFUSED)
def test_other_prefixes_are_named(llmfold: Cli, model: Path, space: Path, case: str) -> None:
    name, word = REFUSED[case]
    rename(model, name)
    refused(llmfold, model, space, f"no prefix {word}")


def test_float64_is_called_so(llmfold: Cli, model: Path, space: Path) -> None:
    edit_tensors(model, lambda stored: stored.update({k: v.double() for k, v in stored.items()}))
    refused(llmfold, model, space, "is float64", "float32")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "bf16"}, ("dtype in config.json is 'bf16'", "bfloat16")),
        ({"torch_dtype": "torch.float32"}, ("torch_dtype in config.json is 'torch.float32'",)),
        ({"dtype": "auto"}, ("dtype in config.json is 'auto'",)),
        ({"dtype": 3}, ("dtype in config.json is 3",)),
        ({"dtype": "int8"}, ("dtype in config.json is 'int8'", "bfloat16")),
        ({"hidden_act": "swish7"}, ("hidden_act 'swish7'",)),
        ({"quantization_config": {}}, ("quantization_config", "is {}", "remove it")),
        ({"quantization_config": False}, ("quantization_config", "is False")),
        ({"architectures": "LlamaModel"}, ("LlamaModel, which is not a causal language model", "fold the one that")),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            ("is not a causal language model", "fold the one that"),
        ),
        ({"bos_token_id": [1, 2]}, ("field 'bos_token_id'", "correct it, or download config.json again")),
        ({"num_attention_heads": 0}, ("config.json is not a valid llama config", "correct it")),
        ({"num_key_value_heads": 3}, ("not a multiple of 3 KV heads", "correct it")),
        ({"vocab_size": -1}, ("vocab_size in config.json is -1, not a positive integer", "correct it")),
        ({"per_layer_config": {"7": {"intermediate_size": 48}}}, ("names layer 7", "correct it")),
        ({"architectures": 3}, ("names 3, which is not a causal language model",)),
    ],
    ids=str,
)
def test_words_of_a_config_are_named(
    llmfold: Cli, model: Path, space: Path, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    edit_json(model / CONFIG, **fields)
    refused(llmfold, model, space, *words)


@pytest.mark.parametrize(
    "fields", [{"architectures": "LlamaForCausalLM"}, {"torch_dtype": "half"}, {"compression_config": {}}], ids=str
)
def test_words_that_stock_reads_are_read(tmp_path: Path, model: Path, fields: dict[str, Any]) -> None:
    edit_json(model / CONFIG, **fields)
    fold(model, ratio=0, output=tmp_path / "out")
    torch.testing.assert_close(logits(tmp_path / "out", TOKENS), logits(model, TOKENS))
