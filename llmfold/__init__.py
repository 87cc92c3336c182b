"""llmfold makes large language models smaller with no data and no fine-tuning."""

from llmfold.api import fold, plan, sweep
from llmfold.architectures import Architecture, register_architecture
from llmfold.config import FoldConfig, LayerOverride
from llmfold.errors import CheckpointError, HubError, LlmfoldError, OutputError, UsageError, VerificationError
from llmfold.planning import FoldPlan
from llmfold.report.record import FoldReport

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "CheckpointError",
    "FoldConfig",
    "FoldPlan",
    "FoldReport",
    "HubError",
    "LayerOverride",
    "LlmfoldError",
    "OutputError",
    "UsageError",
    "VerificationError",
    "__version__",
    "fold",
    "plan",
    "register_architecture",
    "sweep",
]
