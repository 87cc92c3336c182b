"""Self tokens and calibration text."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import edit_json, fold, tiny_model
from transformers import AutoModelForCausalLM

from llmfold import CheckpointError, UsageError
from llmfold.architectures import LayerShape, ModelShape
from llmfold.architectures.llama import LLAMA
from llmfold.methods.tokens import TokenBudget, doubt, quality, sample_tokens, text_tokens, token_budget, windows

CPU = torch.device("cpu")


def shape(intermediate: int) -> ModelShape:
    return ModelShape(LLAMA, 64, 8, 100, (LayerShape(intermediate, 8, 8),), True, False, False, False)


def test_default_budget_has_four_tokens_per_unit_of_the_widest_block() -> None:
    assert token_budget(shape(512), 2048, None, None) == TokenBudget(128, 256, 256)
    assert token_budget(shape(512), 300, None, None) == TokenBudget(128, 256, 44)
    wide = token_budget(shape(11008), 2048, None, None)
    assert wide.sequences * wide.length >= 4 * 11008
    assert token_budget(shape(512), 128, None, None).length == 128


def test_sequences_longer_than_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match="--sequence-length 300"):
        token_budget(shape(512), 256, None, 300)


def test_samples_begin_with_bos_and_depend_on_the_seed_only(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    budget = TokenBudget(4, 20)
    torch.manual_seed(5)
    first = sample_tokens(model, budget, 0, CPU)
    torch.manual_seed(6)
    assert torch.equal(first, sample_tokens(model, budget, 0, CPU))
    assert not torch.equal(first, sample_tokens(model, budget, 1, CPU))
    assert first.shape == (4, 20)
    assert (first[:, 0] == 1).all()


END = 7


@given(
    st.lists(st.integers(0, 19), min_size=20, max_size=40),
    st.integers(1, 12),
    st.integers(0, 8),
    st.integers(0, 2**63 - 1),
)
def test_windows_lie_in_their_documents(ends: list[int], length: int, lead: int, seed: int) -> None:
    """Token i of a document is 100 + i, but for one END (none at place 0)."""
    budget = TokenBudget(len(ends), length, lead)
    documents = (100 + torch.arange(budget.sampled)).repeat(len(ends), 1)
    for row, place in enumerate(ends):
        if 0 < place < budget.sampled:
            documents[row, place] = END
    found = windows(documents, budget, seed, {END})
    assert found.shape == (len(ends), length)
    for row, (place, window) in enumerate(zip(ends, found, strict=True)):
        fitting = [o for o in range(lead + 1) if torch.equal(documents[row, o : o + length], window)]
        assert fitting
        if 0 < place < budget.sampled:
            assert fitting[0] == 0 or fitting[0] + length <= place + 1
    assert torch.equal(found, windows(documents, budget, seed, {END}))


def test_windows_begin_anywhere() -> None:
    documents = torch.arange(12).repeat(400, 1)
    found = windows(documents, TokenBudget(400, 9, 3), 5, set())[:, 0]
    assert torch.bincount(found).min() > 60
    assert not torch.equal(found, windows(documents, TokenBudget(400, 9, 3), 6, set())[:, 0])


def test_sequences_are_windows_of_longer_samples(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    documents = sample_tokens(model, TokenBudget(16, 12), 3, CPU)
    sampled = sample_tokens(model, TokenBudget(16, 9, 3), 3, CPU)
    assert torch.equal(sampled, windows(documents, TokenBudget(16, 9, 3), 3, {2}))


def test_samples_follow_the_model(tmp_path: Path) -> None:
    """The second token's frequencies are the model's own probabilities: temperature 1, no top-k, no top-p."""
    model = tiny_model(tmp_path / "m", vocab_size=8)
    sampled = sample_tokens(model, TokenBudget(4000, 2), 0, CPU)[:, 1]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([[1]])).logits[0, -1].softmax(-1)
    found = torch.bincount(sampled, minlength=8) / 4000
    assert (found - expected).abs().max() < 0.03


def test_a_model_without_bos_begins_with_eos(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    for name in ("config.json", "generation_config.json"):
        edit_json(model / name, bos_token_id=None, eos_token_id=[7, 2])
    edit_json(model / "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    tiny_model(tmp_path / "q", "qwen2", bos_token_id=None, eos_token_id=7)
    assert (sample_tokens(tmp_path / "q", TokenBudget(2, 4), 0, CPU)[:, 0] == 7).all()


def test_loops_are_told_from_text() -> None:
    loop = torch.tensor([[1, 2, 3, 4] * 16])
    varied = torch.randperm(64)[None]
    assert quality(loop)["repeated_4grams"] > 0.9
    assert quality(varied) == {"distinct": 1.0, "repeated_4grams": 0.0}
    assert doubt(quality(varied)) is None
    assert "loops" in str(doubt(quality(loop)))


def test_a_new_document_begins_where_one_ends(tmp_path: Path) -> None:
    sampled = sample_tokens(tiny_model(tmp_path / "m", vocab_size=8), TokenBudget(64, 64), 0, CPU)
    ends = (sampled[:, :-1] == 2).nonzero()
    assert len(ends) > 10
    assert all(sampled[row, position + 1] == 1 for row, position in ends.tolist())


def test_short_text_is_refused(data_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"story\.txt holds \d+ tokens but 200 are wanted"):
        text_tokens(data_dir / "models" / "stories260K", "Once upon a time", TokenBudget(10, 20), "story.txt")


def test_calibrated_names_its_text(data_dir: Path, tmp_path: Path) -> None:
    text = data_dir / "text" / "tinystories-train-head.txt"
    report = fold(
        data_dir / "models" / "stories260K",
        method="calibrated",
        data=str(text),
        mlp_ratio=0.1,
        num_samples=8,
        sequence_length=64,
        refine=0,
        output=tmp_path / "out",
    )
    assert report.data["data"] == "outside text: tinystories-train-head.txt"


def test_calibrated_needs_data_and_data_needs_calibrated(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    for options in ({"method": "calibrated"}, {"method": "paper", "data": "x.txt"}):
        with pytest.raises(UsageError, match="--data"):
            fold(model, ratio=0.2, output=tmp_path / "out", **options)


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises((UsageError, CheckpointError), match=r"no-such-text\.txt"):
        fold(tiny_model(tmp_path / "m"), method="calibrated", data="no-such-text.txt", ratio=0.2, output=tmp_path / "o")
