"""Keeping other libraries' loading bars and notices out of the user's terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers and accelerate below errors inside, and restore them afterwards."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    accelerate_logger = logging.getLogger("accelerate")
    level = accelerate_logger.level
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    accelerate_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        accelerate_logger.setLevel(level)
        if bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def quiet_hub(*, bars: bool) -> Iterator[None]:
    """Silence the hub's client below errors inside, for its notices quote addresses; without ``bars``, those too."""
    logger = logging.getLogger("huggingface_hub")
    level, hide = logger.level, not bars and not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hide:
            enable_progress_bars()
