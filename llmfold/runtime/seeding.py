"""Random numbers that depend on a seed and a place alone, whatever has been drawn before."""

import torch


def mixed_seed(seed: int, index: int) -> int:
    """Seed, from 0 to 2**63 - 1, of what has the number ``index`` (a layer, a batch) in a run of seed ``seed``."""
    return (seed * 1_000_003 + index) % 2**63


def seeded(seed: int, index: int) -> torch.Generator:
    """A generator on the CPU with :func:`mixed_seed`."""
    return torch.Generator().manual_seed(mixed_seed(seed, index))
