"""llama.cpp computes of an exported file what transformers computes of the checkpoint."""

import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, fold

from llmfold.cli import main
from llmfold.demo import demo_folder

for package in ("gguf", "xllamacpp"):
    pytest.importorskip(package, reason=f"the package {package} is not installed: pip install {package}")
pytestmark = pytest.mark.slow


FOLDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "narrower": {"mlp_ratio": 0.2, "attention_ratio": 0.25},
    "widths by layer": {"layers": {"0-2": {"mlp": 0.3}, "4": {"attention": 0.25}}},
}


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that makes the committed page."""
    monkeypatch.syspath_prepend(str(ROOT / "eval" / "engines"))
    for name in ("llama_cpp", "gguf_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import llama_cpp

    return llama_cpp


@pytest.mark.parametrize("form", FOLDS)
def test_folds_of_the_demo(form: str, proof: Any, tmp_path: Path) -> None:
    model = demo_folder()
    if FOLDS[form]:
        model = fold("demo", dtype="float32", output=tmp_path / "folded", **FOLDS[form]).output
    rows, good = proof.measure(proof.Case(form, model, "gpt-2", texts=proof.TEXTS), tmp_path)
    assert good, rows


@pytest.mark.parametrize("number", range(5))
def test_random_models_of_other_families(number: int, proof: Any, tmp_path: Path) -> None:
    from gguf_models import RANDOM, random_model

    names = ["qwen3", "qwen2, heads wider than the hidden state", "llama, positions as Llama 3"]
    names += [name for name in RANDOM if "experts" in name]
    folder = random_model(tmp_path / "random", *RANDOM[names[number]])
    rows, good = proof.measure(proof.Case("random", folder, "gpt-2"), tmp_path)
    assert good, rows


def test_pieces_of_sentencepiece(data_dir: Path, proof: Any, tmp_path: Path) -> None:
    texts = tuple(text.strip() for text in proof.TEXTS)
    rows, good = proof.measure(proof.Case("stories", data_dir / "models" / "stories260K", texts=texts), tmp_path)
    assert good, rows


def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_documentation import commands

    from llmfold.evaluation.llama_cpp import llama_cpp

    monkeypatch.chdir(tmp_path)
    for words in commands(ROOT / "docs" / "gguf.md"):
        if words[0] == "llmfold":
            assert main(words[1:]) == 0, words
    for name in ("demo-folded.gguf", "demo-q8.gguf"):
        with llama_cpp(tmp_path / name, 64, 1) as engine:
            assert len(engine.greedy(engine.tokens("The town"), 8)) == 8


def test_a_tensor_upside_down_is_noticed(proof: Any, tmp_path: Path) -> None:
    found, noticed = proof.broken(proof.Case("demo", demo_folder(), "gpt-2"), tmp_path)
    assert noticed
    assert found.widest > 0.1


def test_another_pre_tokenizer_reads_other_tokens(proof: Any, tmp_path: Path) -> None:
    """The one that the refusal recommends agrees, and this is no accident."""
    from llmfold.evaluation.llama_cpp import llama_cpp
    from llmfold.export.options import ExportSettings
    from llmfold.export.writer import export_gguf

    case = proof.Case("demo", demo_folder(), texts=proof.TEXTS)
    reference, wrong = proof.Reference(case.folder), {}
    for name in ("gpt-2", "llama-bpe", "smollm"):
        path = tmp_path / f"{name}.gguf"
        export_gguf(ExportSettings(str(case.folder), str(path), pre=name), lambda _: None)
        with llama_cpp(path, 64, 1) as engine:
            wrong[name] = proof.misread(case, reference, engine)
    assert not wrong["gpt-2"]
    assert wrong["llama-bpe"]
    assert wrong["smollm"]
