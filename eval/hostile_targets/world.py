"""A sound model and places for what is done to it."""

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import llmfold
from llmfold.checkpoint import Source
from llmfold.pipeline.opening import open_source

SECRET = b"private: 3f9c1d"


class _Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@dataclass
class World:
    """A sound model and what was folded from it, a private file, and places for inputs and outputs."""

    root: Path
    config: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make what is not there."""
        self.base, self.folded, self.outside = (self.root / name for name in ("base", "folded", "outside"))
        self.case, self.out, self.canary = (self.root / name for name in ("case", "out", "canary"))
        if not self.base.exists():
            self.outside.mkdir(parents=True)
            (self.outside / "secret.txt").write_bytes(SECRET)
            _tiny_model(self.base)
            llmfold.fold(
                str(self.base), method="paper", ratio=0.2, fidelity_tokens=0, output=str(self.folded), overwrite=True
            )
        self.config = json.loads((self.base / "config.json").read_text())
        checkpoint, _ = open_source(Source(self.base, "base", None))  # whatever libraries import and make is there then
        self.names = list(checkpoint.tensors)
        self.pickle = pickle.dumps(_Evil(self.canary))
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", self.pickle)
            file.writestr("../../canary", b"x")
        self.zip = archive.getvalue()

    def clean(self) -> None:
        """An empty case and an empty output."""
        for folder in (self.case, self.out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def like(self, folder: Path, *others: str) -> Path:
        """The case with the files of a sound folder, but for some."""
        for path in folder.iterdir():
            if path.name not in others and path.is_file():
                os.link(path, self.case / path.name)
        return self.case

    def intact(self) -> str | None:
        """What was changed outside the case and the output, in words."""
        if self.canary.exists():
            return "code of the input was run"
        if sorted(os.listdir(self.outside)) != ["secret.txt"] or (self.outside / "secret.txt").read_bytes() != SECRET:
            return "a file outside was changed"
        if {*os.listdir(self.root)} - {"base", "folded", "outside", "case", "out", "home"}:
            return f"left behind: {sorted(os.listdir(self.root))}"
        for path in self.out.rglob("*"):
            if path.is_symlink():
                return f"the output holds a link, {path.name!r}"
            if path.is_file() and path.stat().st_size < 10_000_000 and SECRET in path.read_bytes():
                return f"the private file was copied into {path.name!r}"
        return None


def _tiny_model(folder: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz .\n", 3)}
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **letters}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Tiny\n")
