"""Defaults of what measures, and words of its options, without anything that measures: usage errors come at once."""

FIDELITY_TOKENS = 2048
BATCH = 8
AUTO = "auto"
"""A batch size that is found by trying."""
PERPLEXITY = "wikitext2"
