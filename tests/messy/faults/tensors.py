"""Names, dtypes, shapes and values of tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

from messy.draft import Draft
from messy.faults.kind import Kind

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
LAYER = "model.layers.1."
DOWN, GATE, QUERY, INPUT_NORM = (
    f"{LAYER}{part}.weight" for part in ("mlp.down_proj", "mlp.gate_proj", "self_attn.q_proj", "input_layernorm")
)
_HALF = torch.float16


def _cast(draft: Draft, value: tuple[str, torch.dtype]) -> None:
    ending, dtype = value
    for name, tensor in draft.tensors.items():
        if name.endswith(ending):
            draft.tensors[name] = tensor.to(dtype)


def _rename(draft: Draft, value: Callable[[str], str]) -> None:
    draft.tensors = {value(name): tensor for name, tensor in draft.tensors.items()}


def _drop(draft: Draft, value: str) -> None:
    draft.tensors.pop(value, None)


def _add(draft: Draft, value: tuple[str, Tensor | str]) -> None:
    """Add a tensor: one that is given, or a copy of another."""
    name, tensor = value
    new = draft.tensors.get(tensor) if isinstance(tensor, str) else tensor
    if new is not None:
        draft.tensors[name] = new.clone()


def _change(draft: Draft, value: tuple[str, Callable[[Tensor], Tensor]]) -> None:
    name, change = value
    if name in draft.tensors:
        draft.tensors[name] = change(draft.tensors[name].clone()).contiguous()


def _head(draft: Draft, value: Callable[[Tensor], Tensor]) -> None:
    """Store a head that is made of the embedding, whatever the flag says."""
    if EMBEDDING in draft.tensors:
        draft.tensors[HEAD] = value(draft.tensors[EMBEDDING].clone()).contiguous()


def _put(number: float, place: int = 3) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[place % tensor.numel()] = number
        return tensor

    return change


KINDS = {
    "tensors in another dtype": Kind(
        _cast,
        (
            *(("", dtype) for dtype in (torch.float32, torch.bfloat16, _HALF)),
            *((ending, _HALF) for ending in ("norm.weight", "down_proj.weight", EMBEDDING)),
            *((ending, torch.float32) for ending in ("norm.weight", HEAD)),
        ),
    ),
    "the head": Kind(
        _head,
        (
            lambda table: table,
            lambda table: table.flip(0),
            lambda table: table.half(),
            lambda table: table * (1 + 2**-6),
            _put(1.0),
            _put(-0.0),
        ),
    ),
    "names of tensors": Kind(
        _rename,
        (lambda name: name.removeprefix("model."), lambda name: f"model.{name}", lambda name: name),
    ),
    "old buffers": Kind(
        _add,
        (
            (f"{LAYER}self_attn.rotary_emb.inv_freq", torch.ones(4)),
            (f"{LAYER}self_attn.rotary_emb.cos_cached", torch.ones(1, 1, 8, 8)),
            ("model.rotary_emb.inv_freq", torch.ones(4)),
            ("rotary_emb.inv_freq", torch.ones(4)),
        ),
    ),
    "extreme values": Kind(
        _change,
        (
            (GATE, torch.zeros_like),
            (INPUT_NORM, torch.zeros_like),
            (EMBEDDING, lambda table: table * 100),
            (DOWN, lambda weight: weight * 1e4),
            (QUERY, lambda weight: weight * 1e-30),
            (EMBEDDING, _put(0.0)),
        ),
    ),
    "bad dtypes of tensors": Kind(
        _cast,
        (
            ("", torch.float64),
            (DOWN, torch.float64),
            (DOWN, torch.int8),
            (DOWN, torch.float8_e4m3fn),
            (NORM, torch.int64),
            (NORM, torch.bool),
        ),
    ),
    "prefixes of tensors": Kind(
        _rename,
        (
            lambda name: f"base_model.model.{name}",
            lambda name: f"module.{name}",
            lambda name: f"_orig_mod.{name}",
            lambda name: f"language_model.{name}",
            lambda name: f"transformer.{name}",
            lambda name: name.replace("model.", "model.language_model.", 1),
            lambda name: name.replace("model.", "transformer.", 1),
            lambda name: name.replace(".weight", ".gamma") if name.endswith("norm.weight") else name,
            lambda name: name.replace("norm.weight", "norm.scale"),
            lambda name: name.replace("down_proj", "w2"),
            lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"),
            str.upper,
        ),
    ),
    "a tensor is missing": Kind(_drop, (EMBEDDING, HEAD, NORM, DOWN, GATE, QUERY, INPUT_NORM)),
    "a tensor too many": Kind(
        _add,
        (
            ("v_head.summary.weight", torch.ones(1, 32)),
            ("score.weight", torch.ones(1, 32)),
            ("lm_head.bias", torch.zeros(64)),
            ("model.layers.2.input_layernorm.weight", torch.ones(32)),
            ("model.layers.01.input_layernorm.weight", torch.ones(32)),
            ("norm.weight", torch.ones(32)),
            ("embed_tokens.weight", EMBEDDING),
            ("model.lm_head.weight", HEAD),
            (f"{LAYER}self_attn.q_proj.bias", torch.zeros(32)),
            (f"{LAYER}self_attn.o_proj.bias", torch.ones(32)),
            (f"{LAYER}mlp.down_proj.bias", torch.zeros(32)),
            (f"{LAYER}mlp.down_proj.scales", torch.ones(32)),
            (f"{LAYER}self_attn.q_norm.weight", torch.ones(8)),
            (f"{LAYER}self_attn.q_proj.lora_A.weight", torch.ones(2, 32)),
            ("model.embed_positions.weight", torch.ones(64, 32)),
            ("empty", torch.zeros(0)),
            ("", torch.zeros(1)),
            ("model.norm.weight ", torch.zeros(1)),
        ),
    ),
    "a bad tensor": Kind(
        _change,
        (
            (DOWN, _put(float("nan"))),
            (EMBEDDING, _put(float("inf"))),
            (EMBEDDING, _put(float("nan"), 40 * 32)),
            (NORM, _put(float("-inf"))),
            (DOWN, lambda weight: weight.T),
            (QUERY, lambda weight: weight[:16]),
            (QUERY, lambda weight: weight.reshape(-1)),
            (NORM, lambda weight: weight[None]),
            (NORM, lambda weight: weight[:1]),
            (NORM, lambda weight: weight.new_ones(())),
            (EMBEDDING, lambda table: torch.cat([table, table[:8]])),
            (EMBEDDING, lambda table: table[:60]),
            (HEAD, lambda table: torch.cat([table, table[:8]])),
            (DOWN, lambda weight: weight * 1e30),
        ),
    ),
}
