"""What transformers 5 alone reads in the small files of an output, written as older releases read it too.

The oldest release that is kept in mind is 4.57. It knows no ``TokenizersBackend``, takes ``extra_special_tokens`` for a
dict, and computes with defaults where a config has its rotary parameters as ``rope_parameters`` only.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmfold.checkpoint.side_files import TOKENIZER_CONFIG
from llmfold.data.tokenizer import stock_tokenizer
from llmfold.engines.facts import lacks_older_rope, older_rope_differs
from llmfold.errors import CheckpointError
from llmfold.jsonfile import read_object
from llmfold.models import stock_config
from llmfold.pipeline.output_tokenizer import difference

_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Names of transformers 5 and what all releases call the same class."""
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json in words that every release reads; equal to ``settings`` where it is so."""
    words = dict(settings)
    if words.get("tokenizer_class") in _CLASSES:
        words["tokenizer_class"] = _CLASSES[words["tokenizer_class"]]
    if isinstance(words.get("extra_special_tokens"), list):
        tokens = words.pop("extra_special_tokens")
        words.setdefault("additional_special_tokens", tokens)
    return words


def make_tokenizer_portable(folder: Path) -> list[str]:
    """Rewrite tokenizer_config.json of an output in words that every release reads, where the newest reads it the same.

    Args:
        folder: the work folder, with its own config.json.

    Returns:
        What a person should know of the source's, a sentence each.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / TOKENIZER_CONFIG
    try:
        settings = read_object(path, unique_keys=False) if path.is_file() else {}
    except CheckpointError:  # nothing reads it, so nothing is made of it
        return []
    words = portable_settings(settings)
    if words == settings:
        return []
    before, text = stock_tokenizer(folder), path.read_bytes()
    if before is None:  # what cannot be compared stays as it is
        return []
    path.write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    source = f"{TOKENIZER_CONFIG} of the source is written as transformers 5 alone reads it"
    if difference(before, stock_tokenizer(folder)) is None:
        return [f"{source}; that of the output is in words that older releases read too"]
    path.write_bytes(text)
    return [f"{source}, and so is that of the output: in older words the tokenizer would not be the same"]


def source_notes(config: Mapping[str, Any]) -> list[str]:
    """What a person should know of the raw config of a source that older releases read otherwise, a sentence each."""
    if not older_rope_differs(config):
        return []
    return [
        "config.json of the source has its rotary parameters as transformers 5 alone reads them: older releases "
        "compute with defaults, and say nothing; that of the output has both spellings"
    ]


def older_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that tell transformers 4 the rotary parameters of a config; none where the newest would read it otherwise.

    Args:
        config: raw config of the output, of a family that is not registered.

    Returns:
        ``rope_theta``, ``rope_scaling`` and, of models that have them, ``rope_local_base_freq`` of layers with a window
        and ``partial_rotary_factor``, as far as the config lacks them.
    """
    if not lacks_older_rope(config):
        return {}
    fields = {key: value for key, value in _spelled(config["rope_parameters"]).items() if key not in config}
    try:
        same = _rope_of({**config, **fields}) == _rope_of(config)
    except CheckpointError:  # the newest takes no such words beside its own, as for Gemma 4's layers of two kinds
        return {}
    return fields if same else {}


def _spelled(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` in the words of transformers 4."""
    if isinstance(parameters.get(_FULL), dict):
        local = parameters.get(_SLIDING)
        base = (
            {"rope_local_base_freq": local["rope_theta"]} if isinstance(local, dict) and "rope_theta" in local else {}
        )
        return {**_spelled(parameters[_FULL]), **base}
    if "rope_theta" not in parameters:
        return {}
    top = {key: parameters[key] for key in _ROPE_KEYS if key in parameters}
    scaling = {key: value for key, value in parameters.items() if key not in _ROPE_KEYS}
    plain = scaling.get("rope_type", "default") == "default"
    return {**top, "rope_scaling": None if plain else scaling}


def _rope_of(config: Mapping[str, Any]) -> Any:
    """What the transformers installed makes of the rotary parameters."""
    return getattr(stock_config(config), "rope_parameters", None)
