"""``llmfold eval``: perplexity of one model, and its fidelity to the dense model that it was folded from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmfold.errors import UsageError
from llmfold.evaluation.fidelity import TOKENS, Fidelity
from llmfold.evaluation.judge import Judge
from llmfold.evaluation.loading import DTYPES, Loading
from llmfold.evaluation.machine import machine_words
from llmfold.evaluation.perplexity import BATCH, Perplexity, text_windows
from llmfold.evaluation.results import write
from llmfold.evaluation.texts import read_text
from llmfold.report.record import versions
from llmfold.sources import locate, public_name
from llmfold.streaming.engine import pick_device


@dataclass(frozen=True)
class Evaluation:
    """What was measured; ``dense`` and ``fidelity`` are None without a dense model, perplexities without a text."""

    model: str
    against: str | None
    perplexity: Perplexity | None
    dense: Perplexity | None
    fidelity: Fidelity | None
    fidelity_protocol: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data with versions and machine."""
        return {**asdict(self), "versions": versions(), "machine": machine_words()}

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")


def evaluate(
    model: str,
    *,
    text: str | None = None,
    against: str | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    windows: int | None = None,
    batch_size: int = BATCH,
    dtype: str = "float32",
    device: str = "auto",
    fidelity_tokens: int = TOKENS,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Measure a model.

    Args:
        model: local folder, hub id or ``demo``.
        text: file or ``wikitext`` for perplexity; None for none.
        against: the dense model for KL and top-1 agreement; None for none.
        sequence_length: tokens in a window; None: 2,048 or the model's maximum.
        stride: of the windows; None if they do not overlap.
        windows: most windows to score.
        batch_size: sequences in one forward pass.
        dtype: ``float32``, or ``auto`` for the dtype stored.
        device: where to run.
        fidelity_tokens: about how many tokens to sample from the dense model.
        trust_remote_code: run the modelling file that ``model`` carries.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    if text is None and against is None:
        raise UsageError("nothing to measure: pass --text for perplexity, or --against for fidelity to a dense model")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype is {dtype!r}; choose from {', '.join(DTYPES)}")
    if batch_size < 1 or fidelity_tokens < 1:
        raise UsageError("--batch-size and --fidelity-tokens must be at least 1")
    source = locate(model)
    dense = locate(against) if against else None
    content = read_text(text) if text else None
    cut = (
        text_windows(source.folder, content, length=sequence_length, stride=stride, limit=windows) if content else None
    )
    judge = Judge(
        dense.folder if dense else source.folder,
        cut,
        Loading(dtype, pick_device(device)),
        batch=batch_size,
        tokens=fidelity_tokens if dense else 0,
    )
    if dense is None:
        return Evaluation(public_name(source), None, judge.dense().perplexity, None, None, None)
    found = judge.measure(source.folder, remote_code=trust_remote_code)
    return Evaluation(
        public_name(source),
        public_name(dense),
        found.perplexity,
        judge.dense().perplexity,
        found.fidelity,
        judge.fidelity_protocol(),
    )
