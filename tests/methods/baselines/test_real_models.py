"""The trained checkpoints at 20 % of the MLP neurons: the perplexities on record."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import fold
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.slow
WINDOW, WINDOWS = 256, 60


def perplexity(folder: Path, text: Path) -> float:
    ids = torch.tensor(PreTrainedTokenizerFast.from_pretrained(folder)(text.read_text()).input_ids)
    windows = ids[: WINDOW * WINDOWS].view(WINDOWS, WINDOW)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        losses = [
            F.cross_entropy(model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
            for batch in windows.split(10)
        ]
    return math.exp(float(torch.stack(losses).mean()))


@pytest.mark.parametrize(
    ("method", "bias", "expected"),
    [
        ("magnitude", True, 12.14),
        ("wanda-sp", True, 7.01),
        ("flap-uniform", False, 6.96),
        ("flap-uniform", True, 6.68),
        ("llm-pruner", True, 9.87),
    ],
)
def test_stories260k(data_dir: Path, tmp_path: Path, method: str, bias: bool, expected: float) -> None:
    text = data_dir / "text"
    data = None if method == "magnitude" else str(text / "tinystories-train-head.txt")
    model = data_dir / "models" / "stories260K"
    options: dict[str, Any] = {"mlp_ratio": 0.2, "method": method, "data": data, "bias": bias}
    if data:
        options.update(num_samples=64, sequence_length=256)
    report = fold(model, **options, output=tmp_path / "out")
    assert perplexity(tmp_path / "out", text / "tinystories-validation-head.txt") == pytest.approx(expected, rel=0.02)
    assert report.data["data"] == ("outside text: tinystories-train-head.txt" if data else "none")
