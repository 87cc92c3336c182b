"""What rules of engines are about: facts of a folder, from its small files and the headers of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llmfold.errors import CheckpointError
from llmfold.folder_files import CONFIG_FILE, raw_config
from llmfold.jsonfile import read_object

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_EVERYWHERE = {"rope_type": "default", "rope_theta": 10000.0}
"""What releases that find no rotary parameters compute with, for most families."""


def lacks_older_rope(config: Mapping[str, Any]) -> bool:
    """Whether the rotary parameters of a raw config are told to transformers 5 alone."""
    return isinstance(config.get("rope_parameters"), dict) and "rope_theta" not in config


def older_rope_differs(config: Mapping[str, Any]) -> bool:
    """Whether older releases would compute with other rotary parameters than a raw config tells transformers 5."""
    return lacks_older_rope(config) and {**_EVERYWHERE, **config["rope_parameters"]} != _EVERYWHERE


@dataclass(frozen=True)
class Facts:
    """Facts of a folder.

    Attributes:
        folder: which.
        config: content of config.json.
        tokenizer: content of tokenizer_config.json, empty where there is none.
        files: names in the folder.
        tensors: dtypes of the stored tensors by their names, as safetensors calls them.
    """

    folder: Path
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    files: frozenset[str]
    tensors: Mapping[str, str]

    @property
    def dtypes(self) -> frozenset[str]:
        """Of the stored tensors."""
        return frozenset(self.tensors.values())

    @property
    def model_type(self) -> str:
        """The family, as transformers names it."""
        return str(self.config.get("model_type"))

    @property
    def architecture(self) -> str:
        """The class that the config names first."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @property
    def remote_code(self) -> bool:
        """Whether the model is built by code in the folder."""
        return bool(self.config.get("auto_map"))

    @property
    def by_layer(self) -> bool:
        """Whether the widths of single layers are told."""
        return bool(self.config.get("per_layer_config"))

    @property
    def heads_by_layer(self) -> bool:
        """Whether the widths of single layers are told, and layers differ in their heads."""
        told = self.config.get("per_layer_config")
        layers = [layer for layer in told.values() if isinstance(layer, dict)] if isinstance(told, dict) else []
        return len({(layer.get("num_attention_heads"), layer.get("num_key_value_heads")) for layer in layers}) > 1

    @property
    def has_tokenizer(self) -> bool:
        """Whether there are files that a tokenizer is read from."""
        return any(name in self.files for name in _TOKENIZER_FILES)

    @property
    def head_dim(self) -> int | None:
        """Width of a head; None where the config does not tell."""
        told, hidden, heads = (self.number(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
        return told or (hidden // heads if hidden and heads else None)

    @property
    def heads_fill_hidden(self) -> bool:
        """Whether heads are as wide as the hidden size divided by their number, which some classes take for granted."""
        hidden, heads = self.number("hidden_size"), self.number("num_attention_heads")
        return not (hidden and heads) or self.head_dim == hidden / heads

    @property
    def multi_head(self) -> bool:
        """Whether there are as many KV heads as heads."""
        return self.number("num_key_value_heads") in (None, self.number("num_attention_heads"))

    @property
    def rope_of_5_only(self) -> bool:
        """Whether rotary parameters that are no defaults are told to transformers 5 alone."""
        return older_rope_differs(self.config)

    def number(self, key: str) -> int | None:
        """A positive whole number of the config, None where there is no such."""
        value = self.config.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def read_facts(folder: Path) -> Facts:
    """Read the facts of a folder.

    Raises:
        CheckpointError: it is no folder of a model, or a file of it cannot be read.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} has no config.json: name the folder of a model")
    files = frozenset(path.name for path in folder.iterdir())
    weights = sorted(folder / name for name in files if name.endswith(".safetensors"))
    if not weights:
        raise CheckpointError(f"{folder} has no .safetensors file: name a folder that llmfold or save_pretrained wrote")
    tensors = {name: dtype for path in weights for name, dtype in _tensors(path).items()}
    tokenizer = (
        read_object(folder / "tokenizer_config.json", unique_keys=False) if "tokenizer_config.json" in files else {}
    )
    return Facts(folder, raw_config(folder), tokenizer, files, tensors)


def _tensors(path: Path) -> dict[str, str]:
    """Dtypes of the tensors in one file by their names, from its header."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_dtype() for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): download it again") from error
