"""Rules of ONNX Runtime, with optimum as the exporter."""

from llmfold.engines.facts import Facts
from llmfold.engines.known import knows
from llmfold.engines.transformers_rules import of_4_57
from llmfold.engines.verdict import Verdict, refused, refused_heads


def onnx(facts: Facts) -> Verdict:
    """ONNX Runtime."""
    if facts.heads_by_layer:
        return refused("layers differ in heads, and optimum makes the cache of all layers alike")
    if not knows("onnx", facts.model_type):
        return refused(f"optimum does not export {facts.model_type}")
    heads = refused_heads(facts, "optimum")
    if heads is not None:
        return heads
    if facts.model_type == "phi3" and not facts.multi_head:
        return refused("optimum takes every Phi-3 for one with as many KV heads as heads, which this has not")
    return of_4_57(facts)  # which optimum exports with
