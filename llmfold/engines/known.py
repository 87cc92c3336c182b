"""What engines know by name: model types of transformers, classes of vLLM, as their releases list them."""

import json
from functools import lru_cache
from importlib import resources


@lru_cache(maxsize=1)
def _lists() -> dict[str, frozenset[str]]:
    text = resources.files("llmfold.engines").joinpath("known.json").read_text("utf-8")
    return {engine: frozenset(names) for engine, names in json.loads(text).items()}


def knows(engine: str, name: str) -> bool:
    """Whether ``engine`` lists ``name``; KeyError for an engine that has no list."""
    return name in _lists()[engine]
