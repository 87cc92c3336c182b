"""Pruning baselines behind the interface of the folding methods, each faithful to its paper."""

from llmfold.baselines.build import build_baseline
from llmfold.baselines.replan import replan

__all__ = ["build_baseline", "replan"]
