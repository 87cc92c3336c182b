"""What to measure, and how: the options of ``llmfold eval`` in one frozen dataclass."""

import argparse
from dataclasses import dataclass

from llmfold.config import SPEED, task_names
from llmfold.data.plain_text import TEXT_COLUMN
from llmfold.errors import UsageError
from llmfold.evaluation.defaults import AUTO
from llmfold.evaluation.measuring import HEADING, MEASURING, Measuring, compute_dtype, evaluation_command
from llmfold.kinds import ANYTHING, SWITCH, TEXT, Kind, integer, is_integer
from llmfold.options import check_options, flag, option, options_of

WHAT, TIMED = "what", "timed"
GROUPS = {WHAT: "what to measure", **HEADING, TIMED: "the task speed"}


def batch_size(text: str) -> int | str:
    """Parse a number or ``auto``."""
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from error


_BATCH = Kind(
    lambda value: value == AUTO or (is_integer(value) and value >= 1),
    "give a number of at least 1, or auto",
    batch_size,
)


@dataclass(frozen=True)
class EvaluationSettings(Measuring):
    """Options of an evaluation."""

    model: str = option("local folder, hub id, or 'demo'", TEXT, WHAT)
    tasks: str | None = option("with commas between, see below", TEXT, WHAT, None)
    against: str | None = option(
        "the dense model that it was folded from: measured alike, and compared with", TEXT, WHAT, None
    )
    against_revision: str | None = option("branch, tag or commit of the dense model on the hub", TEXT, WHAT, None)
    text: str | None = option("text file for perplexity, or 'wikitext'", TEXT, WHAT, None)
    text_column: str = option("column of the text, where --text is a table", TEXT, WHAT, TEXT_COLUMN)
    data_dir: str | None = option("folder of JSON lines for the tasks, in place of the hub", ANYTHING, WHAT, None)
    limit: int | None = option("score the first N documents of every task only", ANYTHING, WHAT, None, parse=int)
    batch_size: int | str = option("sequences in one forward pass", _BATCH, MEASURING, AUTO)
    compute_dtype: str = compute_dtype("auto")
    prompt_tokens: int = option("tokens read at once", integer(1), TIMED, 128)
    new_tokens: int = option("tokens then written one by one", integer(1), TIMED, 32)
    speed_batch_size: int = option("sequences at once", integer(1), TIMED, 1)
    rounds: int = option("rounds, of which medians are taken", integer(1), TIMED, 5)
    trust_remote_code: bool = option(
        "run the modelling file that the model carries, also where llmfold did not write it", SWITCH, WHAT, False
    )

    def __post_init__(self) -> None:
        """Check everything that can be checked without models and data; raises UsageError."""
        if not (self.tasks or self.text or self.against):
            raise UsageError("nothing to measure: pass --tasks, --text for perplexity, or --against for fidelity")
        speed = SPEED in task_names(self.tasks)
        if speed and self.against is None:
            raise UsageError("speed is measured beside the dense model: pass --against")
        if self.against is None and self.against_revision is not None:
            raise UsageError("--against-revision is a revision of --against, which is missing: pass both, or neither")
        if self.text is None and self.text_column != TEXT_COLUMN:
            raise UsageError("--text-column is a column of --text, which is missing: pass both, or neither")
        check_options(self)
        if not speed:
            self._check_uses()

    def _check_uses(self) -> None:
        """Refuse options of the task speed, where that is not asked for."""
        for each, spec in options_of(self):
            if spec.group == TIMED and getattr(self, each.name) != each.default:
                raise UsageError(f"{flag(each.name)} is of the task speed: pass --tasks speed, or leave it out")

    def command(self) -> str:
        """The command line of this evaluation, files and folders by their names only."""
        return evaluation_command(self)
