"""Planning: ratio to widths, legal shapes, and how a method says what it costs."""

from llmfold.planning.legal import Rules, head_options, snap, width_multiple
from llmfold.planning.plan import FoldPlan, family_of, make_plan
from llmfold.planning.sensitivity import LayerCurves, Sensitivities
from llmfold.planning.widths import plan_widths

__all__ = [
    "FoldPlan",
    "LayerCurves",
    "Rules",
    "Sensitivities",
    "family_of",
    "head_options",
    "make_plan",
    "plan_widths",
    "snap",
    "width_multiple",
]
