"""Planning: ratio to widths, legal shapes, and what the fold will cost."""

from llmfold.planning.estimate import Estimate, estimate, human_seconds
from llmfold.planning.plan import FoldPlan, make_plan
from llmfold.planning.widths import head_options, plan_widths, snap, width_multiple

__all__ = [
    "Estimate",
    "FoldPlan",
    "estimate",
    "head_options",
    "human_seconds",
    "make_plan",
    "plan_widths",
    "snap",
    "width_multiple",
]
