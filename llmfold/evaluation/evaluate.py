"""``llmfold eval``: perplexity, zero-shot accuracy, fidelity and speed of a model, beside the dense one."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from accelerate.utils import find_executable_batch_size

from llmfold.checkpoint import Checkpoint, Source
from llmfold.checkpoint.locate import locate, public_name
from llmfold.data.texts import Text
from llmfold.data.tokens import tokens_sha256
from llmfold.environment import versions
from llmfold.errors import LlmfoldError
from llmfold.evaluation.defaults import AUTO, BATCH
from llmfold.evaluation.fidelity import Fidelity
from llmfold.evaluation.judge import Judge
from llmfold.evaluation.keys import key_of
from llmfold.evaluation.loading import Loading, fits, opened
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.perplexity import Perplexity, Windows, text_windows
from llmfold.evaluation.samples import Sample
from llmfold.evaluation.scores import Evaluation, Finished, ModelScores, task_score
from llmfold.evaluation.speed import SpeedSettings, speed
from llmfold.evaluation.suite import Suite, prepare
from llmfold.runtime.devices import pick_device

Say = Callable[[str], None]
_DECIDING = ("llmfold", "torch", "transformers", "lm-eval")


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
        cut = windows and [windows.protocol, tokens_sha256(windows.tokens)]
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
