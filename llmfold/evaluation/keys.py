"""Names for results, made of everything that decides them."""

import hashlib
import json
from typing import Any

from torch import Tensor


def key_of(*parts: Any) -> str:
    """32 hex digits that differ if any part (of JSON's types) does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokens_digest(tokens: Tensor) -> str:
    """SHA-256 of the bytes of the tokens."""
    return hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()
