"""Planning: ratio to widths, legal shapes, and what the fold will cost."""

from llmfold.planning.estimate import Estimate, advice, disk_needed, estimate, human_seconds, memory_needed
from llmfold.planning.legal import Rules, head_options, snap, width_multiple
from llmfold.planning.limits import available_memory, check_disk, check_memory, human_bytes
from llmfold.planning.plan import FoldPlan, family_of, make_plan
from llmfold.planning.sensitivity import LayerCurves, Sensitivities
from llmfold.planning.widths import plan_widths

__all__ = [
    "Estimate",
    "FoldPlan",
    "LayerCurves",
    "Rules",
    "Sensitivities",
    "advice",
    "available_memory",
    "check_disk",
    "check_memory",
    "disk_needed",
    "estimate",
    "family_of",
    "head_options",
    "human_bytes",
    "human_seconds",
    "make_plan",
    "memory_needed",
    "plan_widths",
    "snap",
    "width_multiple",
]
