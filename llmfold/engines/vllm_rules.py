"""Rules of vLLM, on a CPU where that decides."""

from llmfold.engines.facts import Facts
from llmfold.engines.known import knows
from llmfold.engines.verdict import BY_LAYER, Verdict, refused, refused_heads, with_tokenizer

_LEAST_HEAD = 32
"""Width of a head that its attention on a CPU needs."""
_DIVIDES = ("qwen2",)
"""Families whose classes compute the width of a head by dividing, whatever the config says."""


def vllm(facts: Facts) -> Verdict:
    """VLLM."""
    if facts.by_layer or facts.remote_code:
        return refused(BY_LAYER)
    if not knows("vllm", facts.architecture):
        return refused(f"it does not know {facts.architecture}")
    heads = refused_heads(facts, f"its {facts.model_type}") if facts.model_type in _DIVIDES else None
    if heads is not None:
        return heads
    width = facts.head_dim
    if width is not None and width < _LEAST_HEAD:
        return refused(f"on a CPU it wants heads at least {_LEAST_HEAD} wide, and these are {width}")
    why = "it computes files of float32 in bfloat16, unless dtype='float32' is passed" if "F32" in facts.dtypes else ""
    return with_tokenizer(Verdict(True, why), facts)
