"""Adapters of peft, beside full weights or alone, are refused: transformers adds them where peft is installed."""

import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import transformers
from support import CONFIG, SINGLE, tensors
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import resolve
from llmfold.checkpoint.adapter import refuse_adapter
from llmfold.errors import CheckpointError

Cli = Callable[..., tuple[int, str, str]]
BASE = "owner/base-7b"


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


class Adapted:
    """What peft 0.17 makes of a model and an adapter, as far as the two lines that a sentence gives use it."""

    def __init__(self, base: Any, adapter: str) -> None:
        self.base, self.adapter = base, adapter

    @classmethod
    def from_pretrained(cls, model: Any, model_id: str, adapter_name: str = "default", **_: Any) -> "Adapted":
        return cls(model, model_id)

    def merge_and_unload(self, progressbar: bool = False, safe_merge: bool = False) -> Any:
        return self.base


class AutoAdapted:
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, adapter_name: str = "default", **_: Any) -> Adapted:
        return Adapted(AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path), "")


@pytest.mark.parametrize("files", [(SINGLE,), ()])
def test_the_lines_of_peft_run_and_leave_a_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    names = set(tensors(model))
    add_adapter(model)
    with pytest.raises(CheckpointError) as caught:
        refuse_adapter(model, str(model), ["adapter_config.json", *files])
    code = re.findall("`([^`]+)`", str(caught.value))
    assert len(code) == 2
    stub = SimpleNamespace(PeftModel=Adapted, AutoPeftModelForCausalLM=AutoAdapted)
    monkeypatch.chdir(tmp_path)
    (model / "adapter_config.json").unlink()  # or transformers would ask an installed peft to read it
    exec("\n".join(code), {"transformers": transformers, "peft": stub})
    assert set(tensors(Path("MERGED"))) == names


def test_peft_takes_what_the_lines_give_it() -> None:
    peft = pytest.importorskip("peft")
    inspect.signature(peft.PeftModel.from_pretrained).bind(object(), "ADAPTER")
    inspect.signature(peft.AutoPeftModelForCausalLM.from_pretrained).bind("MODEL")
    inspect.signature(peft.LoraModel.merge_and_unload).bind(object())


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
