"""After folding: weights in fewer bits by torchao, LoRA by peft under Trainer, from the folder as it was written."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, fold, tiny_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

sys.path.insert(0, str(ROOT / "eval"))
import after_folding  # type: ignore[import-not-found]

IDS = (torch.arange(48).view(4, 12) * 7 + 3) % 64


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a package is missing."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install {package}")


@pytest.fixture(scope="module", params=[False, True], ids=["uniform", "by-layer"])
def folded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fold whose widths are multiples of 8."""
    place = tmp_path_factory.mktemp("after")
    by_layer: dict[str, Any] = {"layers": {1: {"mlp": 0.5}}} if request.param else {}
    report = fold(tiny_model(place / "m"), mlp_ratio=1 / 3, multiple_of=8, output=place / "out", **by_layer)
    return report.output


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@needs("torchao")
@pytest.mark.parametrize(("bits", "most"), [(8, 0.05), (4, 0.5)])
def test_a_fold_is_rounded_by_torchao_and_computes_nearly_the_same(folded: Path, bits: int, most: float) -> None:
    exact, model = load(folded), load(folded)
    after_folding.quantise(model, bits, 8)
    with torch.no_grad():
        wanted, found = exact(IDS).logits, model(IDS).logits
    error = float((found - wanted).norm() / wanted.norm())
    assert 0 < error < most


@needs("torchao")
def test_widths_that_no_group_divides_are_told(folded: Path) -> None:
    with pytest.raises(ValueError, match="--multiple-of 7"):
        after_folding.quantise(load(folded), 8, 7)


@needs("peft")
def test_lora_under_trainer_starts_from_the_folder(folded: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = load(folded)
    with torch.no_grad():
        before = model(IDS, labels=IDS).loss
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    settings = TrainingArguments(
        str(tmp_path / "run"), max_steps=20, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(adapted, settings, train_dataset=[{"input_ids": row, "labels": row} for row in IDS]).train()
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(folded), tmp_path / "adapter")
    with torch.no_grad():
        assert again(IDS, labels=IDS).loss < before


def test_bytes_are_those_of_packed_weights(folded: Path) -> None:
    model = load(folded)
    inside = sum(m.weight.numel() for m in after_folding.linear_maps(model).values())
    plain = after_folding.packed_bytes(model, None, 8)
    assert plain == 2 * sum(p.numel() for p in model.parameters())
    assert plain - after_folding.packed_bytes(model, 8, 8) == inside - inside // 8 * 2


def test_the_rival_of_a_fold_lies_between_two_dense_rows() -> None:
    point = after_folding.Point
    dense = [point("dense", 8, 100, 10.0), point("dense", 7, 90, 10.0), point("dense", 3, 50, 40.0)]
    (better,) = after_folding.answers([*dense, point("folded", 8, 70, 19.0)])
    (worse,) = after_folding.answers([*dense, point("folded", 8, 70, 21.0)])
    assert "between two of its rows: 20.00" in better
    assert better.endswith("Better: **the fold**.")
    assert worse.endswith("Better: **the dense model**.")
