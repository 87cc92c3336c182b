"""Weights held as stored, arithmetic in float32."""

from pathlib import Path

import pytest
import torch
from support import FAMILIES, python, tiny_model
from torch import Tensor

from llmfold.data.sampling import Sampler, Sampling
from llmfold.data.tokens import TokenBudget
from llmfold.models import casting
from llmfold.models.casting import load_model

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))


def logits(folder: Path, **options: bool) -> Tensor:
    with torch.inference_mode():
        found: Tensor = load_model(folder, torch.float32, CPU, **options)(TOKENS, use_cache=False).logits
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_float32_model(tmp_path: Path, family: str, tied: bool, dtype: torch.dtype) -> None:
    folder = tiny_model(tmp_path / "m", family, dtype=dtype, tie_word_embeddings=tied)
    cast = logits(folder, as_stored=True)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, logits(folder))


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_matrices_are_cast_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    folder = tiny_model(tmp_path / "m", family, dtype=torch.bfloat16)
    monkeypatch.setattr(casting, "BLOCK_BYTES", 7 * 4 * 32)
    torch.testing.assert_close(logits(folder, as_stored=True), logits(folder), rtol=1e-4, atol=1e-4)


def test_matrices_stay_as_stored(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", dtype=torch.bfloat16)
    model = load_model(folder, torch.float32, CPU, as_stored=True)
    with torch.inference_mode():
        model(TOKENS)
    assert {p.dtype for p in model.parameters() if p.ndim == 2} == {torch.bfloat16}


def test_the_same_tokens_are_sampled(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", dtype=torch.bfloat16)
    first, second = (load_model(folder, torch.float32, CPU, as_stored=stored) for stored in (True, False))
    what = Sampling(TokenBudget(4, 8), 0)
    assert torch.equal(*(Sampler(folder, model).sequences(what) for model in (first, second)))


def test_anonymous_memory_stays_below_the_float32_weights(tmp_path: Path) -> None:
    """Loading and running take less than float32 weights alone, measured beside what the libraries take."""
    size = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 6, "vocab_size": 20_000}
    folder = tiny_model(tmp_path / "m", dtype=torch.bfloat16, head_dim=128, **size)
    taken = python(
        """
import re, sys, threading, time
from pathlib import Path
import torch
from llmfold.models.casting import load_model
def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.001)
folder = Path(sys.argv[1])
tokens = torch.arange(16).view(1, 16)
with torch.inference_mode():
    load_model(folder.with_name("warm"), torch.float32, torch.device("cpu"), as_stored=True)(tokens)
    before = peak = anonymous()
    threading.Thread(target=watch, daemon=True).start()
    model = load_model(folder, torch.float32, torch.device("cpu"), as_stored=True)
    model(tokens)
print(peak - before, 4 * sum(p.numel() for p in model.parameters()))
""",
        warmed(folder),
    )
    grown, wide = map(int, taken.split())
    assert grown < 0.75 * wide


def warmed(folder: Path) -> Path:
    """Put a small model beside ``folder``, whose loading brings all libraries in."""
    tiny_model(folder.with_name("warm"), dtype=torch.bfloat16)
    return folder
