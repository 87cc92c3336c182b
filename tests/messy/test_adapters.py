"""Adapters of peft, beside full weights or alone, are refused: transformers adds them where peft is installed."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from support import CONFIG, SINGLE, fold, logits, tensors
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmfold import plan
from llmfold.checkpoint import resolve
from llmfold.errors import CheckpointError

Cli = Callable[..., tuple[int, str, str]]
BASE = "owner/base-7b"
PROBE = torch.tensor([[1, 2, 3, 4]])


def add_adapter(model: Path, content: str = json.dumps({"base_model_name_or_path": BASE})) -> None:
    (model / "adapter_config.json").write_text(content)
    (model / "adapter_model.safetensors").write_bytes(b"")


def adapter_alone(model: Path) -> None:
    add_adapter(model)
    for name in (CONFIG, SINGLE):
        (model / name).unlink()


def adapter_with_config(model: Path) -> None:
    add_adapter(model)
    (model / SINGLE).unlink()


CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "beside": (add_adapter, ("adapter_config.json", BASE, "PeftModel.from_pretrained", "merge_and_unload")),
    "alone": (adapter_alone, (f"is an adapter of {BASE}", "merge_and_unload()", "save_pretrained")),
    "with a config": (adapter_with_config, (f"is an adapter of {BASE}",)),
    "of no base": (lambda folder: add_adapter(folder, "{}"), ("does not name",)),
    "damaged": (lambda folder: add_adapter(folder, "{"), ("adapter_config.json is not valid JSON",)),
}


@pytest.mark.parametrize("command", ["fold", "plan", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_refused_before_any_work(llmfold: Cli, model: Path, space: Path, case: str, command: str) -> None:
    spoil, words = CASES[case]
    spoil(model)
    options = ("--against", model) if command == "eval" else ("--ratio", 0.2, "--output", space / "out")
    code, _, stderr = llmfold(command, "--model", model, *options)
    assert code == 1
    assert stderr.count("\n") == 1
    for word in words:
        assert word in stderr
    assert os.listdir(space) == []


def lines(refusal: str) -> str:
    """The code that a refusal quotes."""
    quoted = re.findall("`([^`]+)`", refusal)
    assert len(quoted) == 2
    return "\n".join(quoted)


def trained(peft: Any, base: Path, folder: Path, **settings: Any) -> Tensor:
    """Save an adapter whose weights are random; returns logits of ``base`` with it."""
    torch.manual_seed(0)
    modules = {"target_modules": ["q_proj", "down_proj"], **settings}
    made = peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **modules)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), made).eval()
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(PROBE).logits


@pytest.mark.parametrize(
    "settings", [{}, pytest.param({"use_dora": True}, marks=pytest.mark.slow)], ids=["lora", "dora"]
)
@pytest.mark.parametrize("beside", [True, False])
def test_the_lines_of_peft_merge_it_and_the_merged_model_folds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool, settings: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft", reason="the package that makes and merges adapters")
    adapter = tmp_path / "ADAPTER"
    adapted = trained(peft, model, adapter, **settings)
    plain = logits(model, PROBE)
    assert (adapted - plain).abs().max() > 0.5
    if beside:
        for path in adapter.glob("adapter_*"):
            shutil.copy(path, model)
        loaded = logits(model, PROBE)  # with the adapter, but for the magnitudes of dora, which transformers loses
        assert torch.equal(loaded, adapted) is not settings.get("use_dora", False)
        assert not torch.equal(loaded, plain)
    refused = model if beside else adapter
    with pytest.raises(CheckpointError) as caught:
        plan(str(refused), ratio=0.2, method="paper")
    if beside:  # the sentence says to move it
        for path in model.glob("adapter_*"):
            path.unlink()
    else:
        assert f"is an adapter of {model}" in str(caught.value)
    monkeypatch.chdir(tmp_path)
    exec(lines(str(caught.value)), {"transformers": transformers, "peft": peft})
    merged = tmp_path / "MERGED"
    assert set(tensors(merged)) == set(tensors(model))
    torch.testing.assert_close(logits(merged, PROBE), adapted, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(fold(merged, ratio=0, output=tmp_path / "out").output, PROBE), logits(merged, PROBE))


def test_an_adapter_in_a_folder_of_its_own_is_not_looked_at(llmfold: Cli, model: Path) -> None:
    (model / "adapter").mkdir()
    add_adapter(model / "adapter")
    assert llmfold("plan", "--model", model, "--ratio", 0.2)[0] == 0


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(("files", "words"), [([], "is an adapter of"), ([SINGLE], "has full weights")])
def test_an_adapter_on_the_hub_is_refused_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool, files: list[str], words: str
) -> None:
    add_adapter(tmp_path)
    fetched = iter([tmp_path])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(next(fetched)))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["adapter_config.json", *files])
    with pytest.raises(CheckpointError, match=words):
        resolve("owner/adapter", weights=weights)
