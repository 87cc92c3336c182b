"""``llmfold eval``: perplexity, zero-shot accuracy, fidelity and speed of a model, beside the dense one."""

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from accelerate.utils import find_executable_batch_size

from llmfold.checkpoint import Checkpoint, Source
from llmfold.config import check_compute_dtype, option
from llmfold.devices import pick_device
from llmfold.errors import LlmfoldError, UsageError
from llmfold.evaluation.fidelity import TOKENS, Fidelity
from llmfold.evaluation.judge import Judge
from llmfold.evaluation.keys import key_of
from llmfold.evaluation.loading import Loading, fits, opened
from llmfold.evaluation.perplexity import BATCH, Perplexity, Windows, text_windows
from llmfold.evaluation.samples import Sample
from llmfold.evaluation.scores import Evaluation, Finished, ModelScores, task_score
from llmfold.evaluation.speed import SpeedSettings, speed
from llmfold.evaluation.suite import SPEED, Suite, prepare
from llmfold.evaluation.texts import Text
from llmfold.evaluation.variants import public_file
from llmfold.evaluation.zeroshot import AUTO
from llmfold.methods.tokens import digest
from llmfold.report.record import versions
from llmfold.sources import locate, public_name

Say = Callable[[str], None]
_DECIDING = ("llmfold", "torch", "transformers", "lm-eval")


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
            :func:`llmfold.devices.compute_dtype`.
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
    fidelity_tokens: int = TOKENS
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


def evaluate(
    settings: EvaluationSettings,
    output: Path | None = None,
    say: Say = lambda _: None,
    suite: Suite | None = None,
    limit: int | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        settings: what to measure.
        output: JSON file for the results, saved after every task; what it holds already is not measured again.
        say: told what begins.
        suite: of these settings, where its data was found before.
        limit: most bytes that a model may take; None for what is free.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    finished = Finished(output)
    suite = suite or prepare(settings.tasks, text=settings.text, data_dir=settings.data_dir, limit=settings.limit)
    run = _Evaluating(settings, suite, finished, say, limit)
    run.judge()
    run.zero_shot()
    if suite.speed:
        run.time()
    finished.save(run.found.to_dict())
    return run.found


class _Evaluating:
    """One evaluation; every result goes through ``finished``, under a key of all that decides it."""

    def __init__(
        self, settings: EvaluationSettings, suite: Suite, finished: Finished, say: Say, limit: int | None
    ) -> None:
        self.settings, self.suite, self.finished, self.say = settings, suite, finished, say
        self.source = locate(settings.model)
        self.dense = locate(settings.against, settings.against_revision) if settings.against else None
        folders = [source.folder for source in (self.source, self.dense) if source]
        self.loading = Loading.of(settings.compute_dtype, pick_device(settings.device), *folders, limit=limit)
        self.found = Evaluation(
            ModelScores(public_name(self.source)),
            ModelScores(public_name(self.dense)) if self.dense else None,
            compute_dtype=self.loading.words,
            command=settings.command(),
        )

    def judge(self) -> None:
        """Perplexity of both models, and the fidelity of one to the other."""
        settings = self.settings
        windows = self._windows(self.suite.text) if self.suite.text else None
        tokens = settings.fidelity_tokens if self.dense else 0
        if windows is None and not tokens:
            return
        cut = windows and [windows.protocol, digest(windows.tokens)]
        key = self._key("judge", [cut, tokens], self.source, self.dense)
        found = self.finished.get(key, lambda: self._judge(windows, tokens))
        perplexities = {name: Perplexity(**value) for name, value in found["perplexity"].items()}
        self.found.model.perplexity = perplexities.get("model")
        if self.found.dense:
            self.found.dense.perplexity = perplexities.get("dense")
        if found["fidelity"]:
            self.found.fidelity = Fidelity(**found["fidelity"])
            self.found.fidelity_protocol = found["fidelity_protocol"]
        self.found.samples = [Sample(**sample) for sample in found.get("samples", ())]

    def _windows(self, text: Text) -> Windows:
        settings = self.settings
        return text_windows(
            self.source.folder,
            text,
            length=settings.sequence_length,
            stride=settings.stride,
            limit=settings.windows,
        )

    def _judge(self, windows: Windows | None, tokens: int) -> dict[str, Any]:
        reference = self.dense or self.source

        def measure(batch: int) -> dict[str, Any]:
            writes = bool(tokens) and fits(reference.folder, self.loading)  # offloaded, it is read for every token
            judge = Judge(
                reference.folder, windows, self.loading, batch=batch, tokens=tokens, writes=writes, say=self.say
            )
            verdict = judge.dense()
            perplexity = {"dense" if self.dense else "model": verdict.perplexity}
            fidelity = None
            if self.dense:
                self.say(f"measuring {self.found.model.name}")
                verdict = judge.measure(self.source.folder, remote_code=self.settings.trust_remote_code)
                perplexity["model"], fidelity = verdict.perplexity, verdict.fidelity
            return {
                "perplexity": {name: asdict(value) for name, value in perplexity.items() if value},
                "fidelity": asdict(fidelity) if fidelity else None,
                "fidelity_protocol": judge.fidelity_protocol(),
                "samples": [asdict(sample) for sample in judge.samples(verdict)] if self.dense else [],
            }

        if self.settings.batch_size == AUTO:
            found: dict[str, Any] = find_executable_batch_size(measure, starting_batch_size=BATCH)()
            return found
        return measure(int(self.settings.batch_size))

    def zero_shot(self) -> None:
        """All tasks of the dense model, then all of the model."""
        if self.dense and self.found.dense:
            self._zero_shot(self.found.dense, self.dense, remote_code=False)
        self._zero_shot(self.found.model, self.source, remote_code=self.settings.trust_remote_code)

    def _zero_shot(self, scores: ModelScores, source: Source, *, remote_code: bool) -> None:
        harness = self.suite.harness
        with ExitStack() as stack:
            # Loaded when it is first asked for: all of its tasks may be finished.
            model = cache(lambda: stack.enter_context(opened(source.folder, self.loading, remote_code=remote_code)))

            def measure(name: str) -> dict[str, Any]:
                self.say(f"{name}: {scores.name}")
                return asdict(harness.run(name, model(), source.folder, self.settings.batch_size))

            for name in harness.names:
                key = self._key("task", harness.key(name), source)
                try:
                    found = self.finished.get(key, partial(measure, name))
                except LlmfoldError as error:  # one task must not take the others with it
                    self.found.failures.append(str(error))
                    continue
                scores.tasks[name] = task_score(found)

    def time(self) -> None:
        """Both models side by side, as stored, which is how most will run them, and in the dtype of the evaluation.

        Never taken from an earlier run: another hour is another machine.
        """
        assert self.dense is not None
        self.say("timing both models in turn")
        settings = self.settings
        timed = SpeedSettings(settings.speed_batch_size, settings.prompt_tokens, settings.new_tokens, settings.rounds)
        folders, remote_code = (self.source.folder, self.dense.folder), settings.trust_remote_code
        self.found.speed = speed(*folders, replace(self.loading, dtype=None), timed, remote_code=remote_code)
        if {Checkpoint.open(folder).dtype for folder in folders} != {self.loading.dtype}:
            self.found.computed_speed = speed(*folders, self.loading, timed, remote_code=remote_code)

    def _key(self, what: str, options: list[Any], *sources: Source | None) -> str:
        models = [source and Checkpoint.open(source.folder).fingerprint() for source in sources]
        found = versions(*_DECIDING)
        place = [self.loading.words, str(self.loading.device), self.settings.trust_remote_code]
        return f"{what}-{key_of(options, models, place, [found[name] for name in _DECIDING])}"
