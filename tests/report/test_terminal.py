"""What people see: it fits 80 columns, and nothing of it is cut off."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from support import fold, tiny_model

import llmfold
from llmfold.checkpoint import Source
from llmfold.pipeline import opening
from llmfold.pipeline.estimate import estimate
from llmfold.planning import FoldPlan
from llmfold.report.rows import width_rows
from llmfold.report.terminal import plan_table, report_table
from llmfold.sizes import human_bytes, human_count

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "torch_dtype": "float16",
}
LLAMA_405B = {
    **LLAMA_7B,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def printed(table: RenderableType, width: int = 80) -> str:
    """What a console of ``width`` columns shows; refuses lines that are too long or cut."""
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(table)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


def plan_of(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> FoldPlan:
    """Plan a hub model by its config alone, as ``llmfold plan`` does."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(opening, "resolve", lambda *_, **__: Source(tmp_path, "org/model", "0" * 40))
    return llmfold.plan("org/model", **options)


@pytest.mark.parametrize("config", [LLAMA_7B, LLAMA_405B], ids=["7B", "405B"])
@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.2},
        {"ratio": 0.6, "method": "paper", "repair": "variance", "cluster": "hartigan", "align": "gauge"},
        {"layers": {str(i): {"mlp": 0.01 * i} for i in range(1, 32)}},
        {"attention_ratio": 0.25},
    ],
    ids=["ratio", "heads", "layers", "mistral"],
)
def test_plans_of_large_models_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], options: dict[str, Any]
) -> None:
    plan = plan_of(config, tmp_path, monkeypatch, **options)
    text = printed(plan_table(plan, estimate(plan)))
    assert "forward passes" in text
    assert ("normal" in text and "(this one)" in text) == (plan.config.method == "self")
    assert f"{plan.before.layers[0].intermediate}" in text
    assert plan.written_as.causal_lm in text


def test_a_plan_of_7b_says_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(plan_table(plan_of(LLAMA_7B, tmp_path, monkeypatch, ratio=0.2)))
    assert "6.74 B → 5.38 B" in text
    assert "13.5 GB → 10.8 GB" in text


def test_the_mistral_fallback_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(LLAMA_7B, tmp_path, monkeypatch, attention_ratio=0.25)
    assert "MistralForCausalLM, since LlamaConfig refuses 24 heads" in printed(plan_table(plan))


def test_layers_that_differ_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(LLAMA_7B, tmp_path, monkeypatch, layers={"3": {"mlp": 0.5}})
    assert "trust_remote_code=True" in " ".join(printed(plan_table(plan)).split())


def test_the_report_of_many_wide_layers_fits(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", num_hidden_layers=2)
    deep = tmp_path / ("a-very-long-folder-name-" * 5)
    report = fold(source, mlp_ratio=0.25, attention_ratio=0.5, output=deep)
    wide = {
        "before": 53248,
        "after": 28672,
        "cluster_sizes": {"1": 20000, "12345": 2},
        "inertia": 9e9,
        "inertia_bound": 8.1e9,
    }
    heads = {**wide, "before": 128, "after": 112}
    report.layers = [{"mlp": wide, "attention": heads, "seconds": {}}] * 126
    text = printed(report_table(report))
    assert "53248 → 28672" in text
    assert "12345" in text
    assert str(deep) in "".join(line[8:].rstrip() for line in text.splitlines()[-8:])
    assert "".join(line[8:].rstrip() for line in text.splitlines()[-4:]).endswith(str(deep / "report.html"))


def test_the_report_of_an_unfolded_layer_has_no_clusters(tmp_path: Path, session_model: Path) -> None:
    report = fold(session_model, layers={"1": {"mlp": 0.5}}, output=tmp_path / "out", verify="off")
    text = printed(report_table(report))
    assert "48 → 24" in text
    assert "reload check  off" in text


def test_neighbours_of_equal_widths_share_a_line(session_model: Path, tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", num_hidden_layers=5)
    plan = llmfold.plan(source, layers={"1-3": {"mlp": 0.5}})
    assert [row[0] for row in width_rows(plan.to_dict()["layers"], "-")] == ["layers", "0", "1-3", "4"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (6_886_272, "6.9 MB"), (13.5e9, "13.5 GB"), (2.5e12, "2.5 TB")],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (1000, "1.00 k"), (3_443_136, "3.44 M"), (6_738_415_616, "6.74 B")]
)
def test_counts_for_people(count: int, text: str) -> None:
    assert human_count(count) == text
