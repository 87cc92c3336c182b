"""``llmfold compare`` of an image model: accuracy against parameters and multiplications, method by method."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from llmfold.checkpoint.locate import public_name
from llmfold.errors import CheckpointError
from llmfold.evaluation.cache import cache_key
from llmfold.evaluation.image_bench import ImageBench
from llmfold.evaluation.image_scores import Closeness, ImageScores, scores_of
from llmfold.experiments.comparing import Comparing, Comparison, Notify, locked
from llmfold.experiments.image_settings import ImageSettings
from llmfold.experiments.image_table import ImageRow, ImageRun, charts, document
from llmfold.experiments.results import Spread
from llmfold.experiments.table import Page, Section
from llmfold.images.config import ImageConfig
from llmfold.images.kind import image_class
from llmfold.images.model import open_image_model
from llmfold.images.plan import plan_image
from llmfold.images.run import fold_image, inputs_for
from llmfold.pipeline.progress import Listener
from llmfold.records.saved import save_record
from llmfold.runtime.devices import pick_device

_NOT_THE_FOLD = ("check", "invert")
"""Stages that are no part of a fold's seconds: images are inverted once a seed, whoever asks first."""


def compare_images(
    settings: ImageSettings, notify: Notify = lambda _: None, *, debug: bool = False
) -> Comparison[ImageRow]:
    """Fold with every method and seed, measure all, and write report.html, compare.md, compare.json and two
    pictures.

    What is said of :func:`llmfold.experiments.compare.compare` holds here.
    """
    with locked(settings.output):
        return _Comparing(settings, notify, debug).run()


class _Comparing(Comparing[ImageRun, ImageRow]):
    """One comparison of folds of an image model."""

    def __init__(self, settings: ImageSettings, notify: Notify, debug: bool) -> None:
        super().__init__(settings, ImageRun, ImageRow, notify, debug)
        self.settings = settings
        name = image_class(self.checkpoint.config)
        if name is None:
            raise CheckpointError(f"{self.source.name} is no image model by its config.json")
        notify(f"reading {settings.images}")
        self.bench = ImageBench(
            self.source.folder,
            settings.images,
            column=settings.label_column,
            limit=settings.limit,
            device=pick_device(settings.device),
            batch=settings.batch_size,
        )
        self.models = {0.0: open_image_model(self.source, name)}
        self.inputs: dict[tuple[int, str], Tensor | None] = {}
        self.dense_key = cache_key(self.checkpoint.fingerprint(), self.bench.key)

    def dense(self) -> dict[str, Any]:
        self.notify("measuring the dense model")
        return {"scores": asdict(self.bench.dense), "protocol": self.bench.protocol}

    def work(self, config: ImageConfig) -> dict[str, Any]:
        return self.settings.work(config)

    def measured(self, config: ImageConfig) -> dict[str, Any]:
        heads = config.attention_ratio
        if heads not in self.models:
            self.models[heads] = replace(self.models[0.0], heads=heads)
        model = self.models[heads]

        def seen() -> Tensor | None:
            if not config.measures:
                return None
            key = (config.seed, config.device)
            if key not in self.inputs:
                self.inputs[key] = inputs_for(model, config, Listener())
            return self.inputs[key]

        record = fold_image(model, plan_image(model, config), Listener(), save_record, seen)
        scores, close = self.bench.measure(config.output_path, program=True)
        seconds = sum(spent for stage, spent in record.seconds.items() if stage not in _NOT_THE_FOLD)
        return {"data": record.data["data"], "seconds": seconds, **_numbers(scores, close, self._dense)}

    @property
    def _dense(self) -> ImageScores:
        return scores_of(self.results.dense["scores"])

    def facts(self) -> dict[str, Any]:
        return {"images": {"name": self.bench.images.name, "sha256": self.bench.images.sha256}}

    def page(self, facts: Mapping[str, Any], sections: tuple[Section[ImageRow], ...]) -> Page:
        drawn = charts(public_name(self.source), self.bench.images.name, self.dense_row(), self.rows())
        pictures = [self.picture(name, chart) for name, chart in drawn.items()]
        return document(facts, self.results.dense["protocol"], sections, [name for name in pictures if name])

    def dense_row(self) -> ImageRow:
        labelled = self._dense.top1 is not None
        itself = Closeness(None, 1.0, 0.0, None) if self.bench.classes else Closeness(cosine=1.0)
        numbers = {**_numbers(self._dense, itself, self._dense), "difference": 0.0 if labelled else None}
        spreads: dict[str, Any] = {name: Spread(value) for name, value in numbers.items() if value is not None}
        return ImageRow("dense", {}, seeds=0, **spreads)

    def outcome(self, run: ImageRun) -> str:
        (name, value) = run.quality
        return f"{name} {value:.2%}, {run.removed:.1%} removed in {run.seconds:.1f} s"


def _numbers(scores: ImageScores, close: Closeness, dense: ImageScores) -> dict[str, float | None]:
    return {
        "accuracy": scores.top1.value if scores.top1 else None,
        "margin": scores.top1.margin if scores.top1 else None,
        "top5": scores.top5.value if scores.top5 else None,
        "difference": close.difference.value if close.difference else None,
        "agreement": close.agreement,
        "kl": close.kl,
        "cosine": close.cosine,
        "parameters": scores.parameters,
        "removed": 1 - scores.parameters / dense.parameters,
        "multiplications": scores.multiplications,
        "saved": 1 - scores.multiplications / dense.multiplications,
    }
