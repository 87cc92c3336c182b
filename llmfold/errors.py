"""Every error llmfold raises on purpose: one sentence that names the culprit and what to do about it."""


class LlmfoldError(Exception):
    """Base of all expected errors; the command line prints it as one line and exits with ``exit_code``."""

    exit_code = 1


class UsageError(LlmfoldError):
    """An option, a ratio or a recipe that cannot be met as written."""

    exit_code = 2


class CheckpointError(LlmfoldError):
    """The model that was read is missing, damaged, unsupported or unsafe."""


class OutputError(LlmfoldError):
    """The output could not be written, or is not what was meant to be written."""


class DeviceError(LlmfoldError):
    """The device that computes has too little memory for the work, however small its pieces."""


class VerificationError(OutputError):
    """The written checkpoint could not be shown to compute what llmfold produced; it was not published."""


class HubError(LlmfoldError):
    """The hub could not be reached, or refused a push; the output is whole and can be pushed again."""
