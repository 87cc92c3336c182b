"""llmfold makes large language models smaller with no data and no fine-tuning.

Names are imported when they are first used: ``import llmfold`` and the command line's own answers take no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmfold.api import FoldReport, fold, plan, sweep
    from llmfold.config import FoldConfig, LayerOverride
    from llmfold.errors import CheckpointError, HubError, LlmfoldError, OutputError, UsageError, VerificationError
    from llmfold.folding.layer import LayerRecord
    from llmfold.methods.base import LayerMethod
    from llmfold.methods.method import Method
    from llmfold.models import Architecture, register_architecture
    from llmfold.models.finder import register_projections
    from llmfold.modules import ModulePlan, fold_module, plan_module
    from llmfold.planning import FoldPlan
    from llmfold.registry import register_method

from llmfold.version import __version__

__all__ = [
    "Architecture",
    "CheckpointError",
    "FoldConfig",
    "FoldPlan",
    "FoldReport",
    "HubError",
    "LayerMethod",
    "LayerOverride",
    "LayerRecord",
    "LlmfoldError",
    "Method",
    "ModulePlan",
    "OutputError",
    "UsageError",
    "VerificationError",
    "__version__",
    "fold",
    "fold_module",
    "plan",
    "plan_module",
    "register_architecture",
    "register_method",
    "register_projections",
    "sweep",
]

_HOMES = {
    "llmfold.api": ("FoldReport", "fold", "plan", "sweep"),
    "llmfold.models": ("Architecture", "register_architecture"),
    "llmfold.config": ("FoldConfig", "LayerOverride"),
    "llmfold.errors": (
        *("CheckpointError", "HubError", "LlmfoldError", "OutputError", "UsageError", "VerificationError"),
    ),
    "llmfold.folding.layer": ("LayerRecord",),
    "llmfold.methods.base": ("LayerMethod",),
    "llmfold.methods.method": ("Method",),
    "llmfold.models.finder": ("register_projections",),
    "llmfold.modules": ("ModulePlan", "fold_module", "plan_module"),
    "llmfold.planning": ("FoldPlan",),
    "llmfold.registry": ("register_method",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
