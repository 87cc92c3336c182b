"""What doctor says of folders, by config, tokenizer config and headers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmfold.engines import ENGINES, Verdict, doctor
from llmfold.errors import CheckpointError

Cli = Callable[..., tuple[int, str, str]]
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "num_attention_heads": 8,
    "head_dim": 64,
    "rope_theta": 10000.0,
}

QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def folder(path: Path, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
    """A folder as doctor sees it."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    save_file({"lm_head.weight": np.zeros((2, 2), np.float32)}, path / "model.safetensors")
    if tokenizer is not None:
        (path / "tokenizer.json").write_text("{}")
        (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


def verdicts(path: Path, tokenizer: dict[str, Any] | None = None, **config: Any) -> dict[str, Verdict]:
    return doctor(folder(path, {} if tokenizer is None else tokenizer, **config))


def test_a_plain_llama_loads_everywhere(tmp_path: Path) -> None:
    found = verdicts(tmp_path / "m")
    assert found.keys() == ENGINES.keys()
    assert all(verdict.loads and verdict.agrees and verdict.tokenizer for verdict in found.values())
    assert {key for key, verdict in found.items() if verdict.flag} == {"llama.cpp"}


def test_files_of_float32_are_computed_in_half_by_vllm(tmp_path: Path) -> None:
    assert "dtype='float32'" in verdicts(tmp_path / "m")["vllm"].why
    save_file({"lm_head.weight": np.zeros((2, 2), np.float16)}, tmp_path / "m" / "model.safetensors")
    assert doctor(tmp_path / "m")["vllm"].why == ""


def test_widths_by_layer_need_trust_in_transformers_and_are_refused_by_others(tmp_path: Path) -> None:
    code = {
        "architectures": ["FoldedLlamaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_llmfold.FoldedLlamaForCausalLM"},
    }
    found = verdicts(tmp_path / "m", **code, per_layer_config={"0": {"intermediate_size": 3}})
    assert found["transformers"].flag == found["transformers-4.57"].flag == "trust_remote_code=True"
    assert not found["vllm"].loads
    assert found["onnx"].flag == "trust_remote_code=True"
    heads = {str(i): {"num_attention_heads": 8 - i, "num_key_value_heads": 8 - i} for i in range(2)}
    assert "heads" in verdicts(tmp_path / "m", **code, per_layer_config=heads)["onnx"].why
    assert "deci" in found["llama.cpp"].why


@pytest.mark.parametrize(
    ("config", "engine", "word"),
    [
        ({"head_dim": 24}, "vllm", "24"),
        ({"num_attention_heads": 7}, "onnx", "wide"),
        ({"model_type": "phi3", "num_key_value_heads": 2}, "onnx", "KV heads"),
        ({"head_dim": None, "hidden_size": 192}, "vllm", "24"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "transformers-4.46", "qwen3"),
        ({**QWEN2, "num_attention_heads": 7}, "transformers-4.46", "wide"),
        ({**QWEN2, "num_attention_heads": 7}, "vllm", "wide"),
        ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}, "llama.cpp", "gemma2"),
        ({"model_type": "qwen3", "per_layer_config": {"0": {"intermediate_size": 3}}}, "llama.cpp", "one width"),
        ({"model_type": "phi3", "num_attention_heads": 7}, "llama.cpp", "hidden state"),
        ({"model_type": "gemma", "hidden_act": "gelu", "tie_word_embeddings": False}, "llama.cpp", "embedding"),
        ({"hidden_act": "gelu"}, "llama.cpp", "gelu"),
        ({"rope_scaling": {"type": "longrope"}}, "llama.cpp", "longrope"),
        ({"partial_rotary_factor": 0.5}, "llama.cpp", "partial_rotary_factor"),
        ({"model_type": "qwen3_moe"}, "llama.cpp", "norm_topk_prob"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": True, "mlp_only_layers": [1]}, "llama.cpp", "one width"),
        ({"architectures": ["NobodysForCausalLM"]}, "vllm", "NobodysForCausalLM"),
    ],
)
def test_what_an_engine_refuses(tmp_path: Path, config: dict[str, Any], engine: str, word: str) -> None:
    verdict = verdicts(tmp_path / "m", **config)[engine]
    assert not verdict.loads
    assert word in verdict.why


@pytest.mark.parametrize("config", [{"model_type": "mixtral"}, {"model_type": "qwen3_moe", "norm_topk_prob": True}])
def test_mixtures_of_experts_are_exported(tmp_path: Path, config: dict[str, Any]) -> None:
    assert verdicts(tmp_path / "m", **config)["llama.cpp"].loads


def test_a_qwen2_of_other_heads_and_biases_is_a_deci_and_its_output_bias_is_none_of_a_qwen3(tmp_path: Path) -> None:
    assert verdicts(tmp_path / "m", **QWEN2, num_attention_heads=7)["llama.cpp"].loads
    path = folder(tmp_path / "m", {}, model_type="qwen3")
    save_file({"model.layers.0.self_attn.o_proj.bias": np.zeros(2, np.float32)}, path / "model.safetensors")
    assert "bias on o" in doctor(path)["llama.cpp"].why


def test_rotary_parameters_of_transformers_5_alone_are_computed_otherwise(tmp_path: Path) -> None:
    parameters = {"rope_type": "default", "rope_theta": 5e5}
    path = folder(tmp_path / "m", {}, rope_parameters=parameters)
    config = json.loads((path / "config.json").read_text())
    del config["rope_theta"]
    (path / "config.json").write_text(json.dumps(config))
    found = doctor(path)
    assert not found["transformers-4.57"].agrees
    assert not found["transformers-4.46"].agrees
    assert found["transformers"].agrees
    (path / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    assert all(verdict.agrees for verdict in doctor(path).values())


@pytest.mark.parametrize("settings", [{"tokenizer_class": "TokenizersBackend"}, {"extra_special_tokens": ["<a>"]}])
def test_tokenizers_as_transformers_5_writes_them(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = verdicts(tmp_path / "m", settings)
    assert not found["transformers-4.57"].tokenizer
    assert not found["transformers-4.46"].tokenizer
    assert found["transformers"].tokenizer
    assert next(iter(settings)) in found["transformers-4.57"].reason


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    found = doctor(folder(tmp_path / "m"))
    assert not any(verdict.tokenizer for key, verdict in found.items() if key != "llama.cpp")
    assert not found["llama.cpp"].loads


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: (path / "config.json").write_text("[]"), "does not hold a JSON object"),
        (lambda path: (path / "config.json").write_text("[" * 100_000), "is not valid JSON"),
        (lambda path: (path / "model.safetensors").unlink(), "no .safetensors"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\x10"), "damaged"),
        (lambda path: (path / "tokenizer_config.json").write_text("{"), "is not valid JSON"),
    ],
)
def test_what_is_no_folder_of_a_model(llmfold: Cli, tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(folder(tmp_path / "m", {}))
    with pytest.raises(CheckpointError, match=said):
        doctor(tmp_path / "m")
    code, _, stderr = llmfold("doctor", tmp_path / "m")
    assert code == 1
    assert said in stderr


@pytest.mark.parametrize(
    "config",
    [
        {"head_dim": "x", "hidden_size": -1, "num_attention_heads": 0},
        {"architectures": 3, "model_type": ["a"], "rope_parameters": [], "auto_map": 1},
        {"rope_parameters": {"rope_theta": None, "rope_type": 4}, "per_layer_config": "x"},
    ],
)
def test_odd_configs_get_verdicts(tmp_path: Path, config: dict[str, Any]) -> None:
    settings = {"tokenizer_class": ["x"], "extra_special_tokens": 4}
    assert verdicts(tmp_path / "m", settings, **config).keys() == ENGINES.keys()


def test_the_command_prints_a_row_for_every_engine_and_json(llmfold: Cli, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {})
    code, stdout, stderr = llmfold("doctor", path)
    assert (code, stderr) == (0, "")
    assert all(engine.title in stdout for engine in ENGINES.values())
    code, stdout, _ = llmfold("doctor", path, "--json")
    assert code == 0
    assert json.loads(stdout)["vllm"]["loads"] is True
    assert llmfold("doctor", path, "--quiet") == (0, "", "")


def test_verdicts_need_no_torch(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {})
    code = f"import sys; from pathlib import Path; from llmfold.engines import doctor; doctor(Path({str(path)!r}))"
    check = f"{code}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
