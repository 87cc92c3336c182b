"""What to measure, and how: the options of ``llmfold eval`` in one frozen dataclass."""

import shlex
from dataclasses import dataclass, fields

from llmfold.checkpoint.locate import public_file
from llmfold.config import check_compute_dtype, option
from llmfold.errors import UsageError
from llmfold.evaluation.defaults import AUTO, FIDELITY_TOKENS, SPEED


@dataclass(frozen=True)
class EvaluationSettings:
    """Options of an evaluation.

    Attributes:
        model: local folder, hub id or ``demo``.
        tasks: see :func:`llmfold.evaluation.suite.prepare`.
        against: the dense model: measured alike, and compared with by KL and top-1 agreement; None for none.
        against_revision: branch, tag or commit of it on the hub.
        text: file or ``wikitext`` for perplexity.
        data_dir: folder of JSON lines for zero-shot tasks in place of the hub.
        limit: most documents of a zero-shot task.
        sequence_length: tokens in a window; None: 2,048 or the model's maximum.
        stride: of the windows; None if they do not overlap.
        windows: most windows to score.
        batch_size: sequences in one forward pass, or ``auto``.
        compute_dtype: of all arithmetic: ``float32``, ``bfloat16``, ``float16``, or ``auto``; see
            :func:`llmfold.runtime.devices.compute_dtype`.
        device: where to run.
        fidelity_tokens: about how many tokens to sample from the dense model; 0 for no fidelity.
        prompt_tokens, new_tokens, speed_batch_size, rounds: of the task ``speed``; see :class:`SpeedSettings`.
        trust_remote_code: run the modelling file that ``model`` carries.
    """

    model: str
    tasks: str | None = None
    against: str | None = None
    against_revision: str | None = None
    text: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    sequence_length: int | None = None
    stride: int | None = None
    windows: int | None = None
    batch_size: int | str = AUTO
    compute_dtype: str = "auto"
    device: str = "auto"
    fidelity_tokens: int = FIDELITY_TOKENS
    prompt_tokens: int = 128
    new_tokens: int = 32
    speed_batch_size: int = 1
    rounds: int = 5
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check everything that can be checked without models and data; raises UsageError."""
        if not (self.tasks or self.text or self.against):
            raise UsageError("nothing to measure: pass --tasks, --text for perplexity, or --against for fidelity")
        if SPEED in (self.tasks or "").split(",") and self.against is None:
            raise UsageError("speed is measured beside the dense model: pass --against")
        check_compute_dtype(self.compute_dtype)
        if self.batch_size != AUTO and (isinstance(self.batch_size, str) or self.batch_size < 1):
            raise UsageError(f"--batch-size is {self.batch_size!r}; give a number of at least 1, or auto")
        if self.fidelity_tokens < 0:
            raise UsageError(f"--fidelity-tokens is {self.fidelity_tokens}; give at least 0")
        for name in ("prompt_tokens", "new_tokens", "speed_batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"{option(name)} is {getattr(self, name)}; give at least 1")

    def command(self) -> str:
        """The command line of this evaluation, files and folders by their names only."""
        words = ["llmfold", "eval"]
        for f in fields(self):
            value = getattr(self, f.name)
            if value == f.default:
                continue
            words += [option(f.name), *([] if value is True else [public_file(str(value))])]
        return shlex.join(words)
