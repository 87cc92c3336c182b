"""Sizes and times as people write them."""

import math
import re
from fractions import Fraction

from llmfold.errors import UsageError

_UNITS = {unit: 1000**power for power, unit in enumerate(("B", "KB", "MB", "GB", "TB"))}
_UNITS |= {unit: 1024**power for power, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), start=1)}


def parse_size(size: str | int) -> int:
    """Return ``size`` in bytes; "5GB" and "500MB" are decimal, "5GiB" is binary, a number is bytes.

    Raises:
        UsageError: not a positive size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?", str(size).strip().upper(), re.ASCII)
    factor = _UNITS.get(match[2] or "B") if match else None
    nbytes = int(Fraction(match[1]) * factor) if match and factor else 0
    if nbytes <= 0:
        raise UsageError(f"{size!r} is not a size: write for example 5GB, 500MB or 2GiB")
    return nbytes


def human_bytes(count: float) -> str:
    """Render bytes for people, decimal units: ``6.9 MB``, ``13.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Render a duration for people: ``42 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def human_count(count: int) -> str:
    """Render a number of parameters for people: ``3.44 M``, ``6.74 B``."""
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
