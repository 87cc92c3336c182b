"""Options of ``llmfold export``."""

from dataclasses import dataclass

from llmfold.errors import UsageError
from llmfold.kinds import SWITCH, TEXT, choice
from llmfold.options import check_options, option

WHAT = "what"
GROUPS = {WHAT: "what to write"}
SUFFIX = ".gguf"
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class ExportSettings:
    """What is exported, where to, and how its weights are stored there."""

    model: str = option("local folder, hub id, or 'demo'", TEXT, WHAT)
    output: str = option("file to write, which ends in .gguf", TEXT, WHAT)
    revision: str | None = option("branch, tag or commit on the hub", TEXT, WHAT, None)
    type: str = option("how weights are stored; auto: as they are", choice(*TYPES), WHAT, "auto")
    pre: str | None = option(
        "llama.cpp's name for how the tokenizer cuts text into words, where it is not found", TEXT, WHAT, None
    )
    overwrite: bool = option("replace a GGUF file that is there", SWITCH, WHAT, False)

    def __post_init__(self) -> None:
        """Check the options by themselves; raises UsageError."""
        check_options(self)
        if not self.output.endswith(SUFFIX):
            raise UsageError(f"--output is {self.output!r}; give a file whose name ends in {SUFFIX}")
