"""Rules of llama.cpp, for files of ``llmfold export gguf``: those by which it decides, on config and headers."""

from llmfold.engines.facts import Facts
from llmfold.engines.gguf_targets import Form, biases_among, target_of
from llmfold.engines.verdict import Verdict, refused
from llmfold.errors import CheckpointError

EXPORT = "llmfold export gguf"
_HEAD = "lm_head.weight"


def llama_cpp(facts: Facts) -> Verdict:
    """llama.cpp."""
    try:
        target = target_of(_form(facts))
    except CheckpointError as error:
        return refused(str(error))
    if not facts.has_tokenizer:
        return refused(f"{EXPORT} needs a tokenizer, and there is none in the folder")
    why = f"as {target.architecture}, which has widths by layer; its own converter refuses them"
    flag = f"{EXPORT} (--pre NAME where it does not know the pre-tokenizer)"
    return Verdict(True, why if facts.by_layer else "", flag)


def _form(facts: Facts) -> Form:
    config = facts.config
    alike = not config.get("mlp_only_layers") and config.get("decoder_sparse_step", 1) == 1
    return Form(
        family=facts.model_type,
        uniform=alike and not facts.by_layer,
        fills=facts.heads_fill_hidden,
        biases=biases_among(facts.tensors),
        tied=_HEAD not in facts.tensors or bool(config.get("tie_word_embeddings", True)),
        activation=config.get("hidden_activation") or config.get("hidden_act"),
        rope={"partial_rotary_factor": config.get("partial_rotary_factor"), **_rope(facts)},
        shares=bool(config.get("norm_topk_prob", facts.model_type != "qwen3_moe")),
    )


def _rope(facts: Facts) -> dict[str, object]:
    """Rotary parameters as transformers 5 tells them, or as 4 did."""
    found, older = facts.config.get("rope_parameters"), facts.config.get("rope_scaling")
    if isinstance(found, dict) and found:
        return found
    scaling = dict(older) if isinstance(older, dict) else {}
    return {"rope_type": scaling.get("type", "default"), **scaling}
