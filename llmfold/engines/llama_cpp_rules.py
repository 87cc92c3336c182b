"""Rules of llama.cpp, for files that ``llmfold export gguf`` writes."""

from llmfold.engines.facts import Facts
from llmfold.engines.verdict import Verdict, refused

EXPORT = "llmfold export gguf"
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def llama_cpp(facts: Facts) -> Verdict:
    """llama.cpp."""
    if facts.model_type not in _FAMILIES:
        return refused(f"{EXPORT} writes {', '.join(_FAMILIES)}, and this is {facts.model_type}")
    if not facts.has_tokenizer:
        return refused(f"{EXPORT} needs a tokenizer, and there is none in the folder")
    why = "as deci, which has widths by layer; its own converter refuses them" if facts.by_layer else ""
    return Verdict(True, why, f"{EXPORT} (--pre NAME where it does not know the pre-tokenizer)")
