"""Published models are planned by their config alone: tensors by their published names, parameters as published."""

from typing import Any, NamedTuple

import pytest

from llmfold.models import shape_of


class Published(NamedTuple):
    """A published model.

    Attributes:
        config: what its config.json says beside its class's defaults.
        parameters: how many it has, tied ones once.
        tensors: some of its names, with their shapes.
        stored_as: names of an older layout, by those of today.
    """

    config: dict[str, Any]
    parameters: int
    tensors: dict[str, tuple[int, ...]]
    stored_as: dict[str, str] = {}  # noqa: RUF012


def _config(model_type: str, hidden: int, layers: int, heads: int, vocabulary: int, **others: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary}
    return {"model_type": model_type, **sizes, **others}


LAYER = "model.layers.0."
SMALL = {
    "Llama-3.1-8B": Published(
        _config("llama", 4096, 32, 32, 128256, intermediate_size=14336, num_key_value_heads=8),
        8_030_261_248,
        {f"{LAYER}self_attn.k_proj.weight": (1024, 4096), f"{LAYER}mlp.down_proj.weight": (4096, 14336)},
    ),
    "Mistral-7B": Published(
        _config("mistral", 4096, 32, 32, 32000, intermediate_size=14336, num_key_value_heads=8, sliding_window=None),
        7_241_732_096,
        {f"{LAYER}mlp.up_proj.weight": (14336, 4096), "lm_head.weight": (32000, 4096)},
    ),
    "Mixtral-8x7B": Published(
        _config("mixtral", 4096, 32, 32, 32000, intermediate_size=14336, num_key_value_heads=8, num_local_experts=8),
        46_702_792_704,
        {
            f"{LAYER}block_sparse_moe.experts.7.w1.weight": (14336, 4096),
            f"{LAYER}block_sparse_moe.experts.7.w2.weight": (4096, 14336),
            f"{LAYER}block_sparse_moe.gate.weight": (8, 4096),
        },
    ),
    "Gemma-2-9B": Published(
        _config("gemma2", 3584, 42, 16, 256000, intermediate_size=14336, num_key_value_heads=8, head_dim=256),
        9_241_705_984,
        {f"{LAYER}self_attn.q_proj.weight": (4096, 3584), f"{LAYER}pre_feedforward_layernorm.weight": (3584,)},
    ),
    "Phi-3-mini": Published(
        _config("phi3", 3072, 32, 32, 32064, intermediate_size=8192, num_key_value_heads=32),
        3_821_079_552,
        {f"{LAYER}mlp.gate_up_proj.weight": (16384, 3072), f"{LAYER}self_attn.qkv_proj.weight": (9216, 3072)},
    ),
    "OLMo-2-7B": Published(
        _config("olmo2", 4096, 32, 32, 100352, intermediate_size=11008, num_key_value_heads=32),
        7_298_617_344,
        {f"{LAYER}self_attn.q_norm.weight": (4096,), f"{LAYER}post_feedforward_layernorm.weight": (4096,)},
    ),
    "GLM-4-9B-0414": Published(
        _config("glm4", 4096, 40, 32, 151552, intermediate_size=13696, num_key_value_heads=2, head_dim=128)
        | {"attention_bias": True},
        9_400_279_040,
        {f"{LAYER}mlp.gate_up_proj.weight": (27392, 4096), f"{LAYER}self_attn.k_proj.bias": (256,)},
    ),
    "StarCoder2-7B": Published(
        _config("starcoder2", 4608, 32, 36, 49152, intermediate_size=18432, num_key_value_heads=4, use_bias=True),
        7_173_923_840,
        {f"{LAYER}mlp.c_fc.weight": (18432, 4608), f"{LAYER}mlp.c_proj.bias": (4608,)},
    ),
    "Falcon-7B": Published(
        _config("falcon", 4544, 32, 71, 65024, bias=False, multi_query=True, parallel_attn=True, alibi=False),
        6_921_720_704,
        {
            "transformer.h.0.self_attention.query_key_value.weight": (4672, 4544),
            "transformer.h.0.mlp.dense_h_to_4h.weight": (18176, 4544),
        },
    ),
    "Pythia-6.9B": Published(
        _config("gpt_neox", 4096, 32, 32, 50432, intermediate_size=16384, tie_word_embeddings=False),
        6_857_302_016,
        {"gpt_neox.layers.0.mlp.dense_h_to_4h.weight": (16384, 4096), "embed_out.weight": (50432, 4096)},
        {"lm_head.weight": "embed_out.weight"},
    ),
    "OPT-6.7B": Published(
        _config("opt", 4096, 32, 32, 50272, ffn_dim=16384, word_embed_proj_dim=4096),
        6_658_473_984,
        {"model.decoder.layers.0.fc1.weight": (16384, 4096), "model.decoder.embed_positions.weight": (2050, 4096)},
    ),
    "gpt-oss-20b": Published(
        _config("gpt_oss", 2880, 24, 64, 201088, num_local_experts=32, num_key_value_heads=8, head_dim=64),
        20_914_757_184,
        {f"{LAYER}mlp.experts.gate_up_proj": (32, 2880, 5760), f"{LAYER}self_attn.sinks": (64,)},
    ),
    "Qwen2.5-7B": Published(
        _config("qwen2", 3584, 28, 28, 152064, intermediate_size=18944, num_key_value_heads=4),
        7_615_616_512,
        {f"{LAYER}self_attn.q_proj.bias": (3584,), f"{LAYER}mlp.gate_proj.weight": (18944, 3584)},
    ),
}
LARGE = {
    "Qwen3-30B-A3B": Published(
        _config("qwen3_moe", 2048, 48, 32, 151936, num_key_value_heads=4, head_dim=128, num_experts=128)
        | {"moe_intermediate_size": 768},
        30_532_122_624,
        {f"{LAYER}mlp.experts.127.gate_proj.weight": (768, 2048), f"{LAYER}self_attn.q_norm.weight": (128,)},
    ),
    "DeepSeek-V3": Published(
        {"model_type": "deepseek_v3"},
        671_026_419_200,
        {
            "model.layers.3.mlp.experts.255.down_proj.weight": (7168, 2048),
            "model.layers.3.mlp.gate.e_score_correction_bias": (256,),
            "model.layers.0.mlp.gate_proj.weight": (18432, 7168),
        },
    ),
}


QUICK = ("Llama-3.1-8B", "Mixtral-8x7B", "Gemma-2-9B", "Phi-3-mini")


def _check(model: Published) -> None:
    shape = shape_of(model.config)
    old = model.stored_as
    stored = {old.get(name, name): size for name, size in shape.stored_tensors().items()}
    shape.check_stored(stored)
    assert {name: stored.get(name) for name in model.tensors} == model.tensors
    assert shape.parameters == model.parameters


@pytest.mark.parametrize("name", QUICK)
def test_a_published_model_is_planned_by_its_config(name: str) -> None:
    _check(SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in {**SMALL, **LARGE} if name not in QUICK])
def test_other_published_models_are_planned_by_their_configs(name: str) -> None:
    _check({**SMALL, **LARGE}[name])
