"""Checkpoints as people find, merge and convert them: folded as stock transformers computes them, or refused."""
