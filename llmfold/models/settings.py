"""Reading a stock config whose keys differ from family to family."""

from typing import Any

POSITIONS = 2048
"""Of models that count none, for samples to have an end."""


def setting(config: Any, name: str) -> Any:
    """The value of a key; None where the config has none, or one of each layer's own."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # what transformers raises for a key that layers differ in
        return None


def text_config(config: Any) -> Any:
    """The part of a config that says what the language model is; the config itself where it has no parts."""
    whole = getattr(config, "get_text_config", None)
    return config if whole is None else whole(decoder=True)
