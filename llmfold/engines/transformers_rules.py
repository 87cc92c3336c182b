"""Rules of transformers: the newest, 4.57 and 4.46."""

from llmfold.engines.facts import Facts
from llmfold.engines.known import knows
from llmfold.engines.verdict import BY_LAYER, Verdict, refused, refused_heads, with_tokenizer

TRUST = "trust_remote_code=True"
_DIVIDES = ("qwen2", "mixtral", "phi3", "phi", "gemma", "starcoder2", "stablelm", "olmo")
"""Families whose classes of 4.46 compute the width of a head by dividing, whatever the config says."""
_OF_5 = {"TokenizersBackend", "SentencePieceBackend", "PythonBackend"}


def newest(facts: Facts) -> Verdict:
    """Transformers 5."""
    flag = TRUST if facts.remote_code else None
    return with_tokenizer(Verdict(True, BY_LAYER if facts.by_layer else "", flag), facts)


def of_4_57(facts: Facts) -> Verdict:
    """Transformers 4.57."""
    return _older(facts, "transformers-4.57")


def of_4_46(facts: Facts) -> Verdict:
    """Transformers 4.46."""
    if facts.remote_code:
        return refused("the code in the folder is for 4.48 and newer")
    heads = refused_heads(facts, f"its {facts.model_type}") if facts.model_type in _DIVIDES else None
    return heads or _older(facts, "transformers-4.46")


def _older(facts: Facts, engine: str) -> Verdict:
    if not facts.remote_code and not knows(engine, facts.model_type):
        return refused(f"it does not know {facts.model_type}")
    found = Verdict(True, "", TRUST if facts.remote_code else None)
    if facts.rope_of_5_only:
        found = found.but(
            agrees=False, why="rope_parameters are read by transformers 5 alone: add rope_theta and rope_scaling"
        )
    settings, why = facts.tokenizer, ""
    if str(settings.get("tokenizer_class")) in _OF_5:
        why = f"tokenizer_class {settings['tokenizer_class']} is of transformers 5"
    elif isinstance(settings.get("extra_special_tokens"), list):
        why = "extra_special_tokens is a list, as transformers 5 writes it"
    return with_tokenizer(found, facts, why)
