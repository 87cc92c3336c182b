"""Names for results, made of everything that decides them."""

import hashlib
import json
from typing import Any


def key_of(*parts: Any) -> str:
    """32 hex digits that differ if any part (of JSON's types) does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
