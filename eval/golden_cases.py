"""Cases of ``eval/golden.py`` as its table has them, and the models and texts that their steps make."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file


@dataclass(frozen=True)
class Case:
    """A case: its name, its steps as the table has them, and the exit code of its last run."""

    name: str
    steps: Sequence[Any]
    exit: int


def read_cases(content: Mapping[str, Any], pattern: str) -> list[Case]:
    """Cases of the table whose name is like ``pattern``: every method on every model, and the groups of others."""
    methods = content["methods"]
    named = {
        f"method/{model}/{method}": [*methods["before"], methods["run"].format(method=method, model=place, more=more)]
        for model, place in methods["models"].items()
        for method, more in methods["options"].items()
    }
    for group, cases in content["cases"].items():
        named |= {f"{group}/{name}": [steps] if isinstance(steps, str) else steps for name, steps in cases.items()}
    exits = content["exits"]
    return [
        Case(name, steps, exits.get(name.split("/")[0], 0))
        for name, steps in named.items()
        if fnmatchcase(name, pattern)
    ]


def spelled(step: Any) -> dict[str, Any]:
    """A step in full: a text is a command line."""
    return {"run": step} if isinstance(step, str) else step


def _copy(work: Path, model: str, to: str) -> Path:
    """A model that may be changed."""
    folder = work / to
    folder.mkdir(parents=True)
    for path in (work / "models" / model).iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def _edit(work: Path, file: str, **fields: Any) -> None:
    """Change fields of a JSON file; null takes one away."""
    content = {**json.loads((work / file).read_text()), **fields}
    (work / file).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def _write(work: Path, file: str, text: str) -> None:
    (work / file).parent.mkdir(parents=True, exist_ok=True)
    (work / file).write_text(text)


def _head(work: Path, text: str, to: str, characters: int) -> None:
    """The beginning of a text."""
    (work / to).write_text((work / "texts" / text).read_text(encoding="utf-8")[:characters], encoding="utf-8")


def _cut(work: Path, file: str, bytes: int) -> None:
    """Take bytes off the end of a file."""
    os.truncate(work / file, (work / file).stat().st_size - bytes)


def _remove(work: Path, file: str) -> None:
    (work / file).unlink()


def _family(work: Path, model: str, to: str, family: str, **fields: Any) -> None:
    """A copy of a Llama as another family would have it: with biases, or with norms of queries and keys."""
    folder = _copy(work, model, to)
    config = json.loads((folder / "config.json").read_text())
    names = {"mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    _edit(work, f"{to}/config.json", model_type=family, architectures=[names[family]], **fields)
    weights, draw = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for layer in range(config["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn"
        for one in "qkv" if family == "qwen2" else "":
            rows = len(weights[f"{attention}.{one}_proj.weight"])
            weights[f"{attention}.{one}_proj.bias"] = draw.normal(0, 0.1, rows).astype(np.float32)
        for one in "qk" if family == "qwen3" else "":
            width = len(weights[f"{attention}.q_proj.weight"]) // config["num_attention_heads"]
            weights[f"{attention}.{one}_norm.weight"] = draw.uniform(0.8, 1.2, width).astype(np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


PREPARATIONS: dict[str, Callable[..., Any]] = {
    "copy": _copy,
    "edit": _edit,
    "write": _write,
    "head": _head,
    "cut": _cut,
    "remove": _remove,
    "family": _family,
}
"""What a step may make beside a run."""
