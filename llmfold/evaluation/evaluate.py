"""``llmfold eval``: perplexity, zero-shot accuracy, fidelity and speed of a model, beside the dense one."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from llmfold.checkpoint import Checkpoint, Source
from llmfold.checkpoint.locate import locate, public_name
from llmfold.data.tokenizer import load_tokenizer
from llmfold.data.tokens import tokens_sha256
from llmfold.environment import versions
from llmfold.errors import LlmfoldError
from llmfold.evaluation import llama_cpp
from llmfold.evaluation.cache import ResultCache, cache_key
from llmfold.evaluation.defaults import AUTO, BATCH
from llmfold.evaluation.dense_comparison import DenseComparison
from llmfold.evaluation.engine_speed import llama_cpp_speed
from llmfold.evaluation.fidelity import Fidelity, check_vocabularies
from llmfold.evaluation.loading import Limits, Loading, fits, opened
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.perplexity import Perplexity, Windows, text_windows
from llmfold.evaluation.samples import Sample
from llmfold.evaluation.scores import Evaluation, ModelScores, task_score
from llmfold.evaluation.speed import SpeedSettings, speed
from llmfold.evaluation.suite import Suite, prepare
from llmfold.models import shape_of
from llmfold.runtime.devices import pick_device
from llmfold.runtime.oom import explain_oom, in_smaller_chunks

Notify = Callable[[str], None]
_DECIDING = ("llmfold", "torch", "transformers", "lm-eval")


def evaluate(
    settings: EvaluationSettings,
    output: Path | None = None,
    notify: Notify = lambda _: None,
    suite: Suite | None = None,
    limits: Limits | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        settings: what to measure.
        output: JSON file for the results, saved after every task; what it holds already is not measured again.
        notify: told what begins.
        suite: of these settings, where its data was found before.
        limits: see :class:`Loading`.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    results = ResultCache(output)
    suite = suite or prepare(
        settings.tasks,
        text=settings.text,
        column=settings.text_column,
        data_dir=settings.data_dir,
        limit=settings.limit,
    )
    run = _Run(settings, suite, results, notify, limits)
    with explain_oom():
        run.compare()
        run.zero_shot()
        if suite.speed:
            run.time()
    results.save(run.evaluation.to_dict())
    return run.evaluation


class _Run:
    """One evaluation; every result goes through ``results``, under a key of all that decides it."""

    def __init__(
        self, settings: EvaluationSettings, suite: Suite, results: ResultCache, notify: Notify, limits: Limits | None
    ) -> None:
        self.settings, self.suite, self.results, self.notify = settings, suite, results, notify
        self._fingerprint = cache(lambda folder: Checkpoint.open(folder).fingerprint())  # it reads side files whole
        self.source = locate(settings.model)
        self.dense = locate(settings.against, settings.against_revision) if settings.against else None
        self.reader = (self.dense or self.source).folder  # one tokenizer reads every text of a table
        if suite.harness.names:
            load_tokenizer(self.reader)  # before a model is loaded; texts are read next
        folders = [source.folder for source in (self.source, self.dense) if source]
        if self.dense and (suite.text or settings.fidelity_tokens):
            dense, model = (shape_of(Checkpoint.open(each.folder).config) for each in (self.dense, self.source))
            check_vocabularies(dense.vocabulary, model.vocabulary)
        self.loading = Loading.of(settings.compute_dtype, pick_device(settings.device), *folders, limits=limits)
        self.evaluation = Evaluation(
            ModelScores(public_name(self.source)),
            ModelScores(public_name(self.dense)) if self.dense else None,
            compute_dtype=self.loading.words,
            command=settings.command(),
        )

    def compare(self) -> None:
        """Perplexity of both models, and the fidelity of one to the other."""
        settings, evaluation, text = self.settings, self.evaluation, self.suite.text
        windows = text_windows(self.source.folder, text, self.reader, **settings.cut()) if text else None
        tokens = settings.fidelity_tokens if self.dense else 0
        if windows is None and not tokens:
            return
        cut = windows and [windows.protocol, tokens_sha256(windows.tokens)]
        key = self._key("judge", [cut, tokens], self.source, self.dense)
        result = self.results.get(key, lambda: self._compare(windows, tokens))
        perplexities = {name: Perplexity(**value) for name, value in result["perplexity"].items()}
        evaluation.model.perplexity = perplexities.get("model")
        if evaluation.dense:
            evaluation.dense.perplexity = perplexities.get("dense")
        if result["fidelity"]:
            evaluation.fidelity = Fidelity(**result["fidelity"])
            evaluation.fidelity_protocol = result["fidelity_protocol"]
        evaluation.samples = [Sample(**sample) for sample in result.get("samples", ())]

    def _compare(self, windows: Windows | None, tokens: int) -> dict[str, Any]:
        dense, trusted = self.reader, self.settings.trust_remote_code

        def measure(batch: int) -> dict[str, Any]:
            prompts = bool(tokens) and fits(dense, self.loading)  # offloaded, it is read for every token
            comparison = DenseComparison(
                dense,
                windows,
                self.loading,
                batch=batch,
                tokens=tokens,
                prompts=prompts,
                remote_code=trusted and self.dense is None,
                notify=self.notify,
            )
            scores = comparison.dense()
            perplexity = {"dense" if self.dense else "model": scores.perplexity}
            fidelity = None
            if self.dense:
                self.notify(f"measuring {self.evaluation.model.name}")
                scores = comparison.measure(self.source.folder, remote_code=trusted)
                perplexity["model"], fidelity = scores.perplexity, scores.fidelity
            return {
                "perplexity": {name: asdict(value) for name, value in perplexity.items() if value},
                "fidelity": asdict(fidelity) if fidelity else None,
                "fidelity_protocol": comparison.fidelity_protocol(),
                "samples": [asdict(sample) for sample in comparison.samples(scores)] if self.dense else [],
            }

        if self.settings.batch_size == AUTO:
            return in_smaller_chunks(measure, BATCH, f"measuring {self.evaluation.model.name}")[0]
        return measure(int(self.settings.batch_size))

    def zero_shot(self) -> None:
        """All tasks of the dense model, then all of the model."""
        if self.dense and self.evaluation.dense:
            self._zero_shot(self.evaluation.dense, self.dense, remote_code=False)
        self._zero_shot(self.evaluation.model, self.source, remote_code=self.settings.trust_remote_code)

    def _zero_shot(self, scores: ModelScores, source: Source, *, remote_code: bool) -> None:
        harness = self.suite.harness
        with ExitStack() as stack:
            # Loaded when it is first asked for: all of its tasks may be finished.
            model = cache(lambda: stack.enter_context(opened(source.folder, self.loading, remote_code=remote_code)))

            def measure(name: str) -> dict[str, Any]:
                self.notify(f"{name}: {scores.name}")
                return asdict(harness.run(name, model(), self.reader, self.settings.batch_size, scores.name))

            for name in harness.names:
                key = self._key("task", harness.key(name), source, self.dense)
                try:
                    scores.tasks[name] = task_score(self.results.get(key, partial(measure, name)))
                except LlmfoldError as error:  # one task must not take the others with it
                    self.evaluation.failures.append(str(error))

    def time(self) -> None:
        """Both models side by side, as stored, which is how most will run them, and in the dtype of the evaluation.

        Never taken from an earlier run: another hour is another machine.
        """
        assert self.dense is not None
        self.notify("timing both models in turn")
        settings = self.settings
        timed = SpeedSettings(settings.speed_batch_size, settings.prompt_tokens, settings.new_tokens, settings.rounds)
        folders, remote_code = (self.source.folder, self.dense.folder), settings.trust_remote_code
        self.evaluation.speed = speed(*folders, replace(self.loading, dtype=None), timed, remote_code=remote_code)
        if {Checkpoint.open(folder).dtype for folder in folders} != {self.loading.dtype}:
            self.evaluation.computed_speed = speed(*folders, self.loading, timed, remote_code=remote_code)
        if self.loading.device.type == "cpu" and llama_cpp.is_installed():
            self.notify("timing both models in llama.cpp")
            self.evaluation.llama_cpp = llama_cpp_speed(*folders, timed)

    def _key(self, kind: str, options: list[Any], *sources: Source | None) -> str:
        models = [source and self._fingerprint(source.folder) for source in sources]
        packages = versions(*_DECIDING)
        place = [self.loading.words, str(self.loading.device), self.settings.trust_remote_code]
        return f"{kind}-{cache_key(options, models, place, [packages[name] for name in _DECIDING])}"
