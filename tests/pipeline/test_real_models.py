"""The trained checkpoints: size, quality, and a life without llmfold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import fold, parameters, python, tensor_hashes
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llmfold import FoldReport
from llmfold.checkpoint.side_files import TOKENIZER_CONFIG
from llmfold.pipeline.portable import portable_settings

pytestmark = pytest.mark.slow
MODELS = ("stories260K", "story-llama", "wiki-llama")
RATIOS = (0.2, 0.5)
WINDOW, WINDOWS = 256, 60
TEXTS = {"stories260K": "tinystories-validation-head.txt", "story-llama": "tinystories-validation-head.txt"}
TEXTS["wiki-llama"] = "wikipedia-heldout.txt"
GENERATE = """
import json, sys
sys.modules["llmfold"] = None
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    ids = model.generate(torch.tensor([[1]]), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    leftovers = [sorted(map(str, names)) for names in info.values() if names]
    print(json.dumps({"model": type(model).__name__, "ids": ids[0].tolist(), "leftovers": leftovers,
                      "parameters": sum(p.numel() for p in model.parameters())}))
"""
Outputs = dict[tuple[str, Any], tuple[Path, FoldReport]]


@pytest.fixture(scope="module")
def outputs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    space, made = tmp_path_factory.mktemp("real"), {}
    for name in MODELS:
        source = data_dir / "models" / name
        options: dict[Any, dict[str, Any]] = {ratio: {"ratio": ratio} for ratio in RATIOS}
        options["heads"] = {"ratio": 0.3, "attention_ratio": 0.25, "align": "gauge"}
        options["mlp"] = {"mlp_ratio": 0.2}
        for key, wanted in options.items():
            out = space / f"{name}-{key}"
            made[name, key] = (out, fold(source, output=out, **wanted))
    return made


def mlp_step(folder: Path) -> int:
    """Parameters of one neuron in every layer: the narrow models are planned neuron by neuron."""
    config = json.loads((folder / "config.json").read_text())
    assert config["intermediate_size"] < 1024
    return int(3 * config["hidden_size"] * config["num_hidden_layers"])


@pytest.mark.parametrize("ratio", [*RATIOS, "heads"])
@pytest.mark.parametrize("name", MODELS)
def test_the_ratio_is_met_within_half_a_step(data_dir: Path, outputs: Outputs, name: str, ratio: Any) -> None:
    source = data_dir / "models" / name
    out, report = outputs[name, ratio]
    wanted = (1 - (0.3 if ratio == "heads" else ratio)) * parameters(source)
    assert abs(parameters(out) - wanted) <= mlp_step(source) / 2 + 1
    assert report.parameters_before == parameters(source)
    assert report.parameters_after == parameters(out)


def test_loads_and_generates_where_llmfold_cannot_be_imported(outputs: Outputs) -> None:
    lines = python(GENERATE, *(out for out, _ in outputs.values())).splitlines()
    assert len(lines) == len(outputs)
    for line, (out, report) in zip(lines, outputs.values(), strict=True):
        found = json.loads(line)
        assert found["model"] == report.plan["written_as"]
        assert found["leftovers"] == []
        assert found["parameters"] == report.parameters_after == parameters(out)
        assert len(found["ids"]) == 9


@pytest.mark.parametrize("name", MODELS)
def test_a_quarter_of_the_heads_goes_in_whole_groups(outputs: Outputs, name: str) -> None:
    out, report = outputs[name, "heads"]
    config = json.loads((out / "config.json").read_text())
    layers = report.plan["layers"]
    assert config["num_attention_heads"] == 6
    assert {layer["before"]["heads"] for layer in layers} == {8}
    assert config["num_key_value_heads"] == layers[0]["before"]["kv_heads"] * 3 // 4
    for layer in report.layers:
        assert layer["attention"]["after"] == layer["attention"]["before"] * 3 // 4


def perplexity(folder: Path, text: Path) -> float:
    """Protocol of the project: the first 60 windows of 256 tokens, each scored alone in float32."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(tokenizer(text.read_text()[:200_000]).input_ids)
    windows = ids[: WINDOWS * WINDOW].view(WINDOWS, WINDOW)
    with torch.inference_mode():
        losses = [
            F.cross_entropy(model(part).logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
            for part in windows.split(8)
        ]
    return math.exp(float(sum(losses)) / (WINDOWS * (WINDOW - 1)))


@pytest.mark.parametrize(("name", "expected"), [("stories260K", 12.8), ("story-llama", 53.9), ("wiki-llama", 43.0)])
def test_the_published_method_reaches_its_figures(data_dir: Path, outputs: Outputs, name: str, expected: float) -> None:
    """A fifth of every layer's neurons folded; figures of a prototype written for the project before llmfold."""
    found = perplexity(outputs[name, "mlp"][0], data_dir / "text" / TEXTS[name])
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_ratio_zero_changes_no_tensor(data_dir: Path, tmp_path: Path, name: str) -> None:
    source = data_dir / "models" / name
    fold(source, ratio=0, output=tmp_path / "out")
    assert tensor_hashes(tmp_path / "out") == tensor_hashes(source)


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_and_generation_config_come_along(data_dir: Path, outputs: Outputs, name: str) -> None:
    source, out = data_dir / "models" / name, outputs[name, 0.2][0]
    for path in source.iterdir():
        if path.name == TOKENIZER_CONFIG:  # which may be put into words that older releases read
            assert json.loads((out / path.name).read_text()) == portable_settings(json.loads(path.read_text()))
        elif path.name not in ("config.json", "model.safetensors", "README.md"):
            assert (out / path.name).read_bytes() == path.read_bytes()
