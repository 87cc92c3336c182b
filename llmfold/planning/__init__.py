"""Planning: ratio to widths, legal shapes, and how a method says what it costs."""

from llmfold.planning.legal import Rules as Rules
from llmfold.planning.legal import head_options as head_options
from llmfold.planning.legal import snap as snap
from llmfold.planning.legal import width_multiple as width_multiple
from llmfold.planning.plan import FoldPlan as FoldPlan
from llmfold.planning.plan import Removal as Removal
from llmfold.planning.plan import family_of as family_of
from llmfold.planning.plan import make_plan as make_plan
from llmfold.planning.sensitivity import LayerCurves as LayerCurves
from llmfold.planning.sensitivity import Sensitivities as Sensitivities
from llmfold.planning.widths import plan_widths as plan_widths
