"""The engines, each with its rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmfold.engines.facts import Facts, read_facts
from llmfold.engines.llama_cpp_rules import llama_cpp
from llmfold.engines.onnx_rules import onnx
from llmfold.engines.transformers_rules import newest, of_4_46, of_4_57
from llmfold.engines.verdict import Verdict
from llmfold.engines.vllm_rules import vllm


@dataclass(frozen=True)
class EngineRules:
    """An engine: its title in tables, the releases that the rules were checked on, and the rules."""

    title: str
    checked: str
    rules: Callable[[Facts], Verdict]


ENGINES: Mapping[str, EngineRules] = {
    "transformers": EngineRules("transformers 5", "5.23.0", newest),
    "transformers-4.57": EngineRules("transformers 4.57", "4.57.6", of_4_57),
    "transformers-4.46": EngineRules("transformers 4.46", "4.46.3", of_4_46),
    "vllm": EngineRules("vLLM", "0.32.0 on a CPU", vllm),
    "onnx": EngineRules("ONNX Runtime", "1.23.2 by optimum-onnx 0.1.0", onnx),
    "llama.cpp": EngineRules("llama.cpp", "xllamacpp 2026.10", llama_cpp),
}
"""Rules by key; eval/engines checks them against the engines themselves."""


def doctor(folder: Path) -> dict[str, Verdict]:
    """What every engine does with the model in ``folder``, by the keys of ``ENGINES``.

    Raises:
        CheckpointError: it is no folder of a model, or a file of it cannot be read.
    """
    return verdicts(read_facts(folder))


def verdicts(facts: Facts) -> dict[str, Verdict]:
    """What every engine does with a model of such facts, by the keys of ``ENGINES``."""
    return {key: engine.rules(facts) for key, engine in ENGINES.items()}
