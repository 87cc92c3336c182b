"""Planning: ratio to widths, legal shapes, and what the fold will cost."""

from llmfold.planning.estimate import Estimate, advice, estimate, human_seconds
from llmfold.planning.legal import head_options, snap, width_multiple
from llmfold.planning.plan import FoldPlan, family_of, make_plan
from llmfold.planning.sensitivity import LayerCurves, Sensitivities
from llmfold.planning.widths import plan_widths

__all__ = [
    "Estimate",
    "FoldPlan",
    "LayerCurves",
    "Sensitivities",
    "advice",
    "estimate",
    "family_of",
    "head_options",
    "human_seconds",
    "make_plan",
    "plan_widths",
    "snap",
    "width_multiple",
]
