"""Tiny random checkpoints of every causal language model that transformers knows: the library's default config, shrunk.

    python eval/families/tiny.py                     # proves each type; exit code 1 where one fails
    python eval/families/tiny.py mixtral gemma2      # these alone

Weights come from the class's own initialisation, raised so that logits are not flat; biases, norms and other vectors
get noise, so that one which is forgotten shows. The seed decides every bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from overrides import DERIVED, ENCODERS, LOADS_AS_WHOLE_ONLY, OVERRIDES, SEQUENCE_TO_SEQUENCE, UNBUILDABLE, WHOLE_CLASS
from shrinking import VOCABULARY, Config, shrink
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmfold.models.auto_class import auto_class

MODEL_TYPES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
DECODERS: tuple[str, ...] = tuple(t for t in MODEL_TYPES if t not in {*ENCODERS, *SEQUENCE_TO_SEQUENCE})
WRAPPERS: tuple[str, ...] = (
    *("aya_vision", "glm4v", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mistral3", "paligemma"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm"),
)
"""Models that see images too, of which the language part is folded; the auto class of causal models knows others."""

MATRIX_STD = 0.25
VECTOR_STD = 0.1
_WRITTEN_BY_THE_LIBRARY = ("transformers_version", "architectures", "dtype")


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The library's default config of a type, shrunk; KeyError for a type that transformers does not know."""
    config_class = CONFIG_MAPPING[model_type]
    default = {k: v for k, v in config_class().to_dict().items() if k not in _WRITTEN_BY_THE_LIBRARY}
    config: PreTrainedConfig = config_class.from_dict(_merged(shrink(default), OVERRIDES.get(model_type, {})))
    return config


def tiny_model(model_type: str, seed: int) -> PreTrainedModel:
    """The class of the causal-LM mapping (or the whole that it is loaded from) with random float32 weights.

    Raises ValueError, with the reason, for a type that the library cannot build here.
    """
    if model_type in UNBUILDABLE:
        raise ValueError(f"{model_type}: {UNBUILDABLE[model_type]}.")
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model_type in WHOLE_CLASS:
            model = getattr(transformers, WHOLE_CLASS[model_type])._from_config(config, dtype=torch.float32)
        else:
            model = auto_class(config).from_config(config, dtype=torch.float32)
        _enliven(model)
    return model.eval()


def tiny_checkpoint(model_type: str, folder: Path, seed: int) -> None:
    """Write a tiny model to a folder as ``save_pretrained`` does."""
    tiny_model(model_type, seed).save_pretrained(folder)


def _enliven(model: PreTrainedModel) -> None:
    for parameter in (p.detach() for p in model.parameters()):
        if not parameter.is_floating_point():
            continue
        if parameter.ndim < 2:
            parameter.add_(torch.randn_like(parameter), alpha=VECTOR_STD)
        elif parameter.std() > 0:
            parameter.mul_(MATRIX_STD / parameter.std())
        else:
            parameter.normal_(std=MATRIX_STD)


def _merged(config: Config, changes: Mapping[str, Any]) -> Config:
    merged = dict(config)
    for key, value in changes.items():
        if value is DERIVED:
            merged.pop(key)
        elif key.endswith("_config"):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def proof(model_type: str, folder: Path, seed: int = 0) -> list[str]:
    """What is wrong with the tiny checkpoint of a type; nothing if it reloads strictly and computes the same."""
    model = tiny_model(model_type, seed)
    model.save_pretrained(folder)
    whole = WHOLE_CLASS.get(model_type)
    loader = getattr(transformers, whole) if whole else auto_class(tiny_config(model_type))
    reloaded, loading = loader.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    wrong = [f"{kind}: {sorted(map(str, keys))[:3]}" for kind, keys in loading.items() if keys]
    tokens = torch.randint(3, VOCABULARY - 16, (2, 12), generator=torch.Generator().manual_seed(seed))
    logits, again = (_logits(m, tokens) for m in (model, reloaded))
    if not logits.isfinite().all():
        wrong.append("logits are not finite")
    elif logits.std() < VECTOR_STD:
        wrong.append(f"logits are flat: standard deviation {logits.std():.3f}")
    if not torch.equal(logits, again):
        wrong.append("the reloaded model computes other logits")
    if whole:
        text = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        same = torch.equal(logits, _logits(text, tokens))
        if same == (model_type in LOADS_AS_WHOLE_ONLY):
            wrong.append(f"the language model alone computes {'the same' if same else 'other'} logits")
    return wrong


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=tokens, use_cache=False).logits
    return logits


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all if none is given")
    types: list[str] = parser.parse_args(arguments).types or list(MODEL_TYPES)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    for model_type in types:
        start = time.perf_counter()
        if model_type in UNBUILDABLE:
            verdict = f"apart: {UNBUILDABLE[model_type]}"
        else:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    wrong = proof(model_type, Path(folder))
            except Exception as error:  # one type that fails must not end the proof of the others
                wrong = [f"{type(error).__name__}: {error}"]
            failed += bool(wrong)
            verdict = "; ".join(wrong) or "proven"
        print(f"{model_type:28} {time.perf_counter() - start:6.2f} s  {verdict}", flush=True)
    apart = sum(t in UNBUILDABLE for t in types)
    print(f"{len(types)} types: {len(types) - apart - failed} proven, {apart} apart, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
