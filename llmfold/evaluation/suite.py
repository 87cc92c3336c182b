"""What an evaluation measures: names of tasks sorted by who measures them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmfold.config import SPEED, task_names
from llmfold.data.plain_text import TEXT_COLUMN
from llmfold.data.texts import WIKITEXT, Text, read_text
from llmfold.errors import UsageError
from llmfold.evaluation.defaults import PERPLEXITY
from llmfold.evaluation.zeroshot import Harness, expand

_WIKITEXT_FILE = "wikitext-2-raw-v1-test.txt"


@dataclass(frozen=True)
class Suite:
    """Everything to measure, its data at hand.

    Attributes:
        text: of the perplexity as papers measure it; None for none.
        harness: zero-shot tasks of lm-eval.
        speed: whether to time the models.
    """

    text: Text | None
    harness: Harness
    speed: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is to be measured."""
        return not (self.text or self.harness.names or self.speed)


def prepare(
    tasks: str | Sequence[str] | None,
    *,
    text: str | None = None,
    column: str = TEXT_COLUMN,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    prefix: str = "--",
) -> Suite:
    """Find the data of all tasks.

    Args:
        tasks: names, with commas between if one string: ``wikitext2`` (the papers' perplexity), ``folding`` (the four
            tasks of the model folding paper), ``speed``, or any task of lm-eval. lm-eval's own ``wikitext`` measures
            word and byte perplexity, which is something else.
        text: file for perplexity in place of WikiText-2; asks for perplexity by itself.
        column: that holds the text, where ``text`` is a table.
        data_dir: folder of JSON lines in place of the hub, with ``wikitext-2-raw-v1-test.txt`` if perplexity is asked
            for and ``text`` is not given.
        limit: most documents of a zero-shot task.
        prefix: of the last two where they are options, for messages.

    Raises:
        UsageError: an unknown task, a bad limit, data that cannot be had, a limit or a folder that no task reads.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"{prefix}limit is {limit}; give at least 1")
    names = task_names(tasks) if tasks is None or isinstance(tasks, str) else list(tasks)
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{prefix}data-dir {folder} is no folder")
    scored = [name for name in names if name not in (PERPLEXITY, SPEED)]
    if limit is not None and not scored:
        raise UsageError(
            f"{prefix}limit counts documents of zero-shot tasks, and none is named: name one, or leave it out"
        )
    if folder is not None and not scored and (PERPLEXITY not in names or text is not None):
        raise UsageError(f"{prefix}data-dir holds documents of tasks, and none that is named reads them: leave it out")
    harness = Harness(expand(scored, local=folder is not None), folder, limit, prefix)
    if PERPLEXITY in names and text is None:
        text = str(folder / _WIKITEXT_FILE) if folder else WIKITEXT
    content = read_text(text, column) if text else None
    harness.prepare()
    return Suite(content, harness, SPEED in names)
