"""Every error llmfold raises on purpose: one sentence that names the culprit and what to do about it."""

_LONGEST, _TAIL = 2000, 500
"""Characters of a sentence, and of its end, where the remedy stands, if it must be cut."""


def printable(text: str) -> str:
    r"""Text of others on one line of a terminal: no name in a file moves the cursor, or cannot be encoded.

    Breaks are spaces; other control characters and lone surrogates are spelled out, such as ``\x1b``.
    """

    def shown(letter: str) -> str:
        if letter.isprintable():
            return letter
        return " " if letter.isspace() else letter.encode("unicode_escape").decode("ascii")

    return text if text.isprintable() else "".join(map(shown, text))


class LlmfoldError(Exception):
    """Base of all expected errors; the command line prints it as one line and exits with ``exit_code``."""

    exit_code = 1

    def __str__(self) -> str:
        """The sentence on one printable line of bounded length, whatever it quotes of a file that cannot be trusted."""
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - _TAIL]} … {text[-_TAIL:]}"
        return printable(text)


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
