"""Against computations of a few lines that share nothing with the package but transformers."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reading import teach
from support import edit_tensors, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llmfold import CheckpointError, UsageError
from llmfold.data.texts import read_text
from llmfold.evaluation.loading import Loading, opened
from llmfold.evaluation.perplexity import Perplexity, Windows, cut_windows, score, text_windows


def perplexity(folder: Path, windows: Windows, loading: Loading | None = None, *, batch: int = 8) -> Perplexity:
    """Load the model in ``folder`` and score ``windows`` with it."""
    with opened(folder, loading or Loading()) as model:
        return score(model, windows, batch=batch)


def independent(folder: Path, text: Path, length: int, limit: int) -> float:
    """The protocol of the papers, one window at a time."""
    ids = PreTrainedTokenizerFast.from_pretrained(folder)(
        text.read_text(encoding="utf-8"), return_tensors="pt"
    ).input_ids[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    with torch.inference_mode():
        for i in range(min(limit, len(ids) // length)):
            window = ids[None, i * length : (i + 1) * length]
            losses.append(float(model(window, labels=window).loss))
    return math.exp(sum(losses) / len(losses))


def test_equals_an_independent_computation(reader: Path, prose: Path) -> None:
    windows = text_windows(reader, read_text(str(prose)), length=50)
    assert windows.tokens.shape == (12, 50)
    assert windows.tokens[0, 0] == 1
    assert not (windows.tokens[1:] == 1).any()
    found = perplexity(reader, windows)
    assert found.value == pytest.approx(independent(reader, prose, 50, 12), rel=1e-5)
    assert (found.tokens, found.windows) == (12 * 49, 12)
    assert found.value == pytest.approx(math.exp(found.nll))
    limited = perplexity(reader, text_windows(reader, read_text(str(prose)), length=50, limit=5))
    assert limited.value == pytest.approx(independent(reader, prose, 50, 5), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        ("stories260K", "tinystories-validation-head.txt", 4.1552),
        pytest.param("story-llama", "tinystories-validation-head.txt", 34.5466, marks=pytest.mark.slow),
        pytest.param("wiki-llama", "wikipedia-heldout.txt", 28.2350, marks=pytest.mark.slow),
    ],
)
def test_real_models_by_the_protocol_of_the_project(data_dir: Path, model: str, text: str, expected: float) -> None:
    """``expected`` was printed by the project's own ten-line script, which uses transformers alone."""
    folder, path = data_dir / "models" / model, data_dir / "text" / text
    windows = text_windows(folder, read_text(str(path)), length=256, limit=60)
    assert perplexity(folder, windows).value == pytest.approx(expected, abs=6e-5)


def test_does_not_depend_on_the_batch_nor_on_offloading(
    reader: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = text_windows(reader, read_text(str(prose)), length=50)
    expected = perplexity(reader, windows, batch=1).value
    assert perplexity(reader, windows, batch=8).value == pytest.approx(expected, rel=1e-5)
    on_disk = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.layers.1", "lm_head"), "disk")
    place = {**on_disk, "model.norm": "cpu", "model.rotary_emb": "cpu"}
    offloaded = nullcontext({"device_map": place, "offload_folder": str(tmp_path)})
    monkeypatch.setattr("llmfold.evaluation.loading.placed", lambda *_: offloaded)
    assert perplexity(reader, windows).value == pytest.approx(expected, rel=1e-5)


def test_a_stride_scores_every_token_once_in_the_first_window_that_holds_it(reader: Path, prose: Path) -> None:
    windows = text_windows(reader, read_text(str(prose)), length=40, stride=15)
    model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32).eval()
    losses: list[Tensor] = []
    with torch.inference_mode():
        for i, window in enumerate(windows.tokens):
            loss = F.cross_entropy(model(window[None]).logits[0, :-1], window[1:], reduction="none")
            losses.append(loss if i == 0 else loss[-15:])
    found = perplexity(reader, windows, batch=4)
    assert found.tokens == sum(map(len, losses)) == 39 + 15 * (len(windows.tokens) - 1)
    assert found.nll == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_without_a_dtype_a_model_runs_as_stored(tmp_path: Path, prose: Path) -> None:
    folder = teach(tiny_model(tmp_path / "half", dtype=torch.bfloat16))
    windows = text_windows(folder, read_text(str(prose)), length=50)
    half, full = perplexity(folder, windows, Loading(None)), perplexity(folder, windows)
    assert half.value == pytest.approx(full.value, rel=0.05)
    assert half.protocol.endswith("bfloat16")
    assert full.protocol.endswith("float32")


def test_the_protocol_says_it_all(reader: Path, prose: Path) -> None:
    text = read_text(str(prose))
    found = perplexity(reader, text_windows(reader, text, length=50, limit=5)).protocol
    assert found == (
        f"prose.txt (SHA-256 {text.sha256[:12]}…), one stream of 602 tokens with BOS at its start, the first 5 of 12 "
        "non-overlapping windows of 50 tokens, tail dropped; 245 predicted tokens, float32"
    )
    default = text_windows(reader, text)
    assert default.tokens.shape == (4, 128)
    assert "all 4 non-overlapping windows of 128" in default.protocol


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 129}, "--sequence-length 129 must lie between 2 and the model's maximum of 128"),
        ({"length": 1}, "--sequence-length 1"),
        ({"length": 50, "stride": 51}, "--stride 51"),
        ({"length": 50, "stride": 0}, "--stride 0"),
        ({"length": 50, "limit": 0}, "--windows 0"),
    ],
)
def test_windows_that_cannot_be_cut(reader: Path, prose: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        text_windows(reader, read_text(str(prose)), **options)


def test_a_text_shorter_than_a_window() -> None:
    with pytest.raises(UsageError, match="holds 9 tokens but one window takes 10"):
        cut_windows(torch.arange(9), 10)


def test_nan_is_not_a_perplexity(tmp_path: Path, prose: Path) -> None:
    folder = teach(tiny_model(tmp_path / "broken"))
    edit_tensors(folder, lambda t: t["model.norm.weight"].fill_(math.nan))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        perplexity(folder, text_windows(folder, read_text(str(prose)), length=50))


def test_a_model_that_does_not_load_is_a_sentence(tmp_path: Path, reader: Path, prose: Path) -> None:
    folder = teach(tiny_model(tmp_path / "wrong"))
    edit_tensors(
        folder, lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:, :8].clone()})
    )
    with pytest.raises(CheckpointError, match="transformers cannot load wrong"):
        perplexity(folder, text_windows(reader, read_text(str(prose)), length=50))
