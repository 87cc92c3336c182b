"""``llmfold compare``: fold a model by every method, measure all of them alike, and write the table and its picture."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmfold.api import fold
from llmfold.checkpoint.locate import public_name
from llmfold.config import FoldConfig
from llmfold.data.texts import read_text
from llmfold.data.tokens import resolve_effort, tokens_sha256
from llmfold.environment import versions
from llmfold.evaluation import fidelity
from llmfold.evaluation.cache import cache_key
from llmfold.evaluation.dense_comparison import DenseComparison
from llmfold.evaluation.loading import Loading
from llmfold.evaluation.perplexity import text_windows
from llmfold.experiments.chart import chart
from llmfold.experiments.comparing import Comparing, Comparison, Notify, locked
from llmfold.experiments.results import Row, Run, Spread
from llmfold.experiments.settings import Settings
from llmfold.experiments.table import Page, Section, document
from llmfold.models.tying import stored_shape
from llmfold.options import public_file
from llmfold.runtime.devices import pick_device
from llmfold.runtime.storage import file_sha256

CHART_FILE = "compare.svg"
_DECIDING = ("llmfold", "torch", "transformers")


def compare(settings: Settings, notify: Notify = lambda _: None, *, debug: bool = False) -> Comparison[Row]:
    """Fold with every method and seed, evaluate all, and write report.html, compare.md, compare.json and compare.svg.

    Results that compare.json already holds for the same model, options and versions are used again, so an interrupted
    comparison goes on where it stopped. A fold that fails becomes a row with its reason.

    Args:
        settings: what to compare.
        notify: told of progress, one line at a time.
        debug: let errors that nobody expected through, rather than list them.

    Raises:
        LlmfoldError: the model, the text or the output cannot be used at all.
    """
    with locked(settings.output):
        return _Comparing(settings, notify, debug).run()


class _Comparing(Comparing[Run, Row]):
    """One comparison of folds of a language model."""

    def __init__(self, settings: Settings, notify: Notify, debug: bool) -> None:
        super().__init__(settings, Run, Row, notify, debug)
        self.settings = settings
        folder = self.source.folder
        self.shape = stored_shape(self.checkpoint)
        self.text = read_text(settings.text, settings.text_column)
        self.windows = text_windows(folder, self.text, **settings.cut())
        self.loading = Loading.of(settings.compute_dtype, pick_device(settings.device), folder)
        tokens, batch = settings.fidelity_tokens, settings.batch_size
        self.models = DenseComparison(folder, self.windows, self.loading, batch=batch, tokens=tokens, notify=notify)
        self.dense_key = self._dense_key()

    def measured(self, config: FoldConfig) -> dict[str, Any]:
        begin = time.perf_counter()
        report = fold(config, quiet=True)
        seconds = time.perf_counter() - begin - report.seconds.get("check", 0.0)
        remote_code = bool(report.plan["needs_trust_remote_code"])
        scores = self.models.measure(config.output_path, remote_code=remote_code)
        assert scores.perplexity is not None
        return {
            "data": str(report.data.get("data", "none")),
            "perplexity": scores.perplexity.value,
            "excess": scores.perplexity.nll - float(self.results.dense["nll"]),
            "kl": scores.fidelity.kl if scores.fidelity else None,
            "top1": scores.fidelity.top1 if scores.fidelity else None,
            "parameters": report.parameters_after,
            "removed": report.ratio,
            "removed_decoder": float(report.plan["decoder_ratio"]),
            "seconds": seconds,
        }

    def dense(self) -> dict[str, Any]:
        perplexity = self.models.dense().perplexity
        assert perplexity is not None
        return {
            "perplexity": perplexity.value,
            "nll": perplexity.nll,
            "parameters": self.shape.parameters,
            "protocol": perplexity.protocol,
            "fidelity_protocol": self.models.fidelity_protocol(),
        }

    def _dense_key(self) -> str:
        tokens = self.windows.tokens
        return cache_key(
            self.checkpoint.fingerprint(),
            tokens_sha256(tokens),
            [self.text.name, *tokens.shape, self.windows.stride, self.loading.words, str(self.loading.device)],
            [self.settings.fidelity_tokens, fidelity.LENGTH, fidelity.SEED],
            {name: versions()[name] for name in _DECIDING},
        )

    def work(self, config: FoldConfig) -> dict[str, Any]:
        work = {**resolve_effort(config, self.shape).work(), "model": None}
        if config.data is not None:
            path = Path(config.data).expanduser()
            work["data"] = [public_file(config.data), file_sha256(path) if path.is_file() else None]
        return work

    def facts(self) -> dict[str, Any]:
        return {"text": {"name": self.text.name, "sha256": self.text.sha256}}

    def page(self, facts: Mapping[str, Any], sections: tuple[Section[Row], ...]) -> Page:
        decoder = self.settings.ratio_of == "decoder"
        perplexity = float(self.results.dense["perplexity"])
        drawn = chart(public_name(self.source), self.text.name, perplexity, self.rows(), decoder=decoder)
        picture = self.picture(CHART_FILE, drawn)
        return document(facts, self.results.dense, sections, decoder=decoder, picture=picture)

    def dense_row(self) -> Row:
        dense, nothing = self.results.dense, Spread(0.0)
        exact = self.settings.fidelity_tokens > 0
        return Row(
            "dense",
            {},
            seeds=0,
            perplexity=Spread(dense["perplexity"]),
            excess=nothing,
            kl=nothing if exact else None,
            top1=Spread(1.0) if exact else None,
            parameters=Spread(dense["parameters"]),
            removed=nothing,
            removed_decoder=nothing,
        )

    def outcome(self, run: Run) -> str:
        return f"perplexity {run.perplexity:.2f}, {run.removed:.1%} removed in {run.seconds:.1f} s"
