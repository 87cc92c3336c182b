"""Rules of vLLM, on a CPU where that decides."""

from llmfold.engines.facts import Facts
from llmfold.engines.known import knows
from llmfold.engines.verdict import Verdict, refused

_LEAST_HEAD = 32
"""Width of a head that its attention on a CPU needs."""
_DIVIDES = ("qwen2",)
"""Families whose classes compute the width of a head by dividing, whatever the config says."""


def vllm(facts: Facts) -> Verdict:
    """VLLM."""
    if facts.by_layer or facts.remote_code:
        return refused("layers differ in width, which its own classes do not build")
    if not knows("vllm", facts.architecture):
        return refused(f"it does not know {facts.architecture}")
    if facts.model_type in _DIVIDES and not facts.heads_fill_hidden:
        return refused(
            f"its {facts.model_type} takes heads for hidden_size / num_attention_heads wide, which these are not"
        )
    width = facts.head_dim
    if width is not None and width < _LEAST_HEAD:
        return refused(f"on a CPU it wants heads at least {_LEAST_HEAD} wide, and these are {width}")
    why = "it computes files of float32 in bfloat16, unless dtype='float32' is passed" if "F32" in facts.dtypes else ""
    return Verdict(True, why, tokenizer=facts.has_tokenizer, tokenizer_why="there is none in the folder")
