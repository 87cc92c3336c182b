"""Which tensors of a checkpoint are weights, which are leftovers to drop, and which make it unfit for folding."""

from collections.abc import Mapping
from typing import Any

from llmfold.checkpoint.dtypes import TORCH_DTYPES
from llmfold.errors import CheckpointError

OWN_MODULE = "modeling_llmfold"
"""Module of the modelling file that llmfold writes."""
_RECOMPUTED = (
    *("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"),
    ".embeddings.position_ids",
)
_COUNTER = ".num_batches_tracked"
_CAUSAL_MASKS = (".attn.bias", ".attention.bias")
_MASK_FILLS = (".attn.masked_bias", ".attention.masked_bias")
_QUANTISED_PARTS = frozenset(
    (
        *("qweight", "qzeros", "scales", "g_idx", "absmax", "nested_absmax", "quant_map", "nested_quant_map", "SCB"),
        *("weight_scale", "weight_scale_inv", "weight_packed", "weight_zero_point", "input_scale"),
    )
)
_DEQUANTISED = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
"""Quantisations that published weights come in, and the config of transformers that widens each."""
_DOUBLED = ("model.model.", "model.lm_head.")
_BARE = ("layers.", "embed_tokens.", "norm.")
_ADVICE = "llmfold folds bf16, fp16 and fp32 weights: take the unquantised model, fold it first and quantise after"


def is_legacy_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether the tensor is a buffer of an old transformers release that every loader computes anew.

    A causal mask shares its name with a bias, so it is told by its shape: (1, 1, n, n).
    """
    if name.endswith(_CAUSAL_MASKS):
        return len(shape) == 4 and shape[:2] == (1, 1)
    return name.endswith(_RECOMPUTED) or (name.endswith(_MASK_FILLS) and shape == ())


def stock_name(name: str) -> str:
    """The name under which transformers loads a tensor: ``model.`` is added where it lacks, and removed if doubled."""
    if name.startswith(_DOUBLED):
        return name.removeprefix("model.")
    return f"model.{name}" if name.startswith(_BARE) else name


def refuse_quantised_config(config: dict[str, Any], model: str) -> None:
    """Raise CheckpointError when ``config`` declares quantised weights."""
    declared = config.get("quantization_config")
    method = declared.get("quant_method") if isinstance(declared, dict) else None
    if method in _DEQUANTISED:
        raise CheckpointError(
            f"{model} is quantised ({method}); have transformers widen it first: "
            "AutoModelForCausalLM.from_pretrained(MODEL, dtype='bfloat16', "
            f"quantization_config={_DEQUANTISED[method]}(dequantize=True)).save_pretrained(DIR)"
        )
    if declared or config.get("compression_config"):
        raise CheckpointError(f"{model} is quantised (its config.json says so); {_ADVICE}")
    if declared is not None:
        raise CheckpointError(
            f"quantization_config in the config.json of {model} is {declared!r}, which transformers cannot load: "
            "remove it if the weights are not quantised"
        )


def refuse_model_code(config: Mapping[str, Any], model: str) -> None:
    """Raise CheckpointError when ``config`` says that code of the checkpoint's own computes the model.

    The modelling file that llmfold writes for layers of different widths is known, and folded as what it is.
    """
    named = config.get("auto_map")
    for key in ("AutoConfig", "AutoModelForCausalLM"):
        code = named.get(key) if isinstance(named, dict) else None
        if code is not None and not str(code).startswith(OWN_MODULE):
            raise CheckpointError(
                f"{model} is computed by code of its own (auto_map in config.json names {code}), which llmfold does "
                "not run: if it computes what the stock class does, remove auto_map from config.json"
            )


def refuse_quantised_tensor(name: str, dtype: str, shard: str) -> None:
    """Raise CheckpointError when the tensor's name or safetensors ``dtype`` is not that of a weight llmfold folds.

    The number of batches that a BatchNorm has seen is an integer, and is kept.
    """
    if name.endswith(_COUNTER) and dtype == "I64":
        return
    if dtype == "F64":
        raise CheckpointError(f"tensor {name!r} in {shard} is float64: convert the model to float32 first")
    if name.rsplit(".", 1)[-1] in _QUANTISED_PARTS or dtype not in TORCH_DTYPES:
        raise CheckpointError(f"tensor {name!r} ({dtype}) in {shard} is quantised or not a weight; {_ADVICE}")
