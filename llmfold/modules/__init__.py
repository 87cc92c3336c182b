"""Any ``torch.nn.Module``: traced, its couplings found and tried, narrowed by the mathematics of decoder layers."""

from llmfold.modules.fold import fold_module as fold_module
from llmfold.modules.plan import ModulePlan as ModulePlan
from llmfold.modules.plan import plan_module as plan_module
