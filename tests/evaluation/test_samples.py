"""Prompts continued by both models: greedy, the same alone as in company, and left out where they cannot be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reading import teach
from support import tiny_model
from transformers import AutoModelForCausalLM

import llmfold as package
from llmfold.checkpoint.side_files import TOKENIZER_CONFIG
from llmfold.evaluation.loading import Loading, opened
from llmfold.evaluation.samples import PROMPTS, continue_prompts, find_tokenizer, greedy

QUICK = {"method": "paper", "mlp_ratio": 0.25, "fidelity_tokens": 256}


@pytest.mark.parametrize("family", ["llama", "qwen3", "RecurrentGemma"])
def test_every_token_is_the_most_likely_one_after_all_before_it(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path / "m", family, num_hidden_layers=3)
    prompts = [[1, 5, 9, 30], [1, 7], [3]]
    with opened(folder, Loading()) as model:
        found = greedy(model, prompts, 12)
        for prompt, written in zip(prompts, found, strict=True):
            alone = list(prompt)
            while len(alone) < len(prompt) + 12:
                alone.append(int(model(torch.tensor([alone])).logits[0, -1].argmax()))
                if alone[-1] == 2:
                    break
            assert written == [token for token in alone[len(prompt) :] if token != 2]


def test_a_text_ends_where_the_model_ends_it(reader: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(reader).eval()
    with torch.inference_mode():
        first = greedy(model, [[1, 5]], 8)[0]
        model.generation_config.eos_token_id = [first[3]]
        assert greedy(model, [[1, 5]], 8)[0] == first[: first.index(first[3])]


def test_text_begins_where_the_prompt_ends(reader: Path) -> None:
    with opened(reader, Loading()) as model:
        texts = continue_prompts(model, find_tokenizer(reader), ("once", "a dog "), 5)
        again = continue_prompts(model, find_tokenizer(reader), ("once", "a dog "), 5)
    assert texts == again
    assert texts is not None
    assert len(texts) == 2
    assert not any("once" in text or "<s>" in text for text in texts)


def test_what_does_not_fit_the_model_is_not_continued(tmp_path: Path, session_model: Path) -> None:
    assert find_tokenizer(session_model) is None
    (tmp_path / "tokenizer.json").write_text("{")
    assert find_tokenizer(tmp_path) is None
    narrow = teach(tiny_model(tmp_path / "narrow", vocab_size=8))
    short = teach(tiny_model(tmp_path / "short", max_position_embeddings=16))
    for folder in (narrow, short):
        with opened(folder, Loading()) as model:
            assert continue_prompts(model, find_tokenizer(folder)) is None


def test_a_fold_shows_them_on_the_page_and_at_its_end(reader: Path, space: Path, llmfold: Any) -> None:
    command = ("--model", reader, "--mlp-ratio", 0.25, "--method", "paper", "--fidelity-tokens", 256)
    code, stdout, _ = llmfold(*command, "--output", space / "out")
    assert code == 0
    samples = json.loads((space / "out" / "report.json").read_text())["quality"]["samples"]
    assert [sample["prompt"] for sample in samples] == list(PROMPTS)
    assert any(sample["dense"] != sample["model"] for sample in samples)
    text = (space / "out" / "report.html").read_text()
    assert all(f"{prompt} …" in text for prompt in PROMPTS)
    assert text.index(PROMPTS[0]) < text.index("Quality beside")
    assert PROMPTS[0].split()[0] in stdout
    assert "".join(line[8:].rstrip() for line in stdout.splitlines()[-4:]).endswith("out/report.html")


def test_without_a_tokenizer_a_note_says_so(session_model: Path, space: Path) -> None:
    report = package.fold(session_model, **QUICK, output=space / "out")
    assert report.quality["samples"] == []
    assert "no tokenizer" in report.notes[0]
    assert "no tokenizer" in (report.output / "report.html").read_text()


def test_no_fidelity_no_samples(reader: Path, space: Path) -> None:
    report = package.fold(reader, **{**QUICK, "fidelity_tokens": 0}, output=space / "out")
    assert report.quality == {}
    assert all(TOKENIZER_CONFIG in note for note in report.notes)  # that it was not in words of older releases


def test_text_is_escaped_on_the_page(reader: Path, space: Path) -> None:
    from llmfold.report.html import page

    report = package.fold(reader, **QUICK, output=space / "out").to_dict()
    report["quality"]["samples"][0]["model"] = "<script>alert(1)</script>"
    assert "<script" not in page(report)
    assert "&lt;script&gt;" in page(report)


def test_outputs_of_earlier_versions_have_none(reader: Path, space: Path) -> None:
    from llmfold.evaluation.scores import Evaluation

    quality = json.loads(json.dumps(package.fold(reader, **QUICK, output=space / "out").quality))
    assert Evaluation.from_dict(quality).to_dict() == quality | {"samples": quality["samples"]}
    del quality["samples"]
    assert Evaluation.from_dict(quality).samples == []
    shutil.rmtree(space / "out")
