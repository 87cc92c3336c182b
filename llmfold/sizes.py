"""Sizes as people write them."""

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
