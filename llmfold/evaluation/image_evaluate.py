"""``llmfold eval`` of an image model: accuracy, and how close it is to the dense model."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.locate import locate, public_name
from llmfold.evaluation.cache import ResultCache, cache_key
from llmfold.evaluation.image_bench import ImageBench
from llmfold.evaluation.image_options import ImageEvaluationSettings
from llmfold.evaluation.image_scores import ImageEvaluation, closeness_of, scores_of
from llmfold.runtime.devices import pick_device


def evaluate_images(
    settings: ImageEvaluationSettings, output: Path | None = None, notify: Callable[[str], None] = lambda _: None
) -> ImageEvaluation:
    """Measure an image model.

    Args:
        settings: what to measure.
        output: JSON file for the results; what it holds already is not measured again.
        notify: told what begins.

    Raises:
        LlmfoldError: with one sentence that says what is wrong and what to do.
    """
    results = ResultCache(output)
    source = locate(settings.model)
    dense = locate(settings.against, settings.against_revision) if settings.against else None
    assert settings.images is not None
    notify(f"reading {settings.images}")
    bench = ImageBench(
        (dense or source).folder,
        settings.images,
        column=settings.label_column,
        limit=settings.limit,
        device=pick_device(settings.device),
        batch=settings.batch_size,
        program=settings.trust_remote_code,
    )

    def measure() -> dict[str, Any]:
        notify(f"measuring {'the dense model' if dense else public_name(source)}")
        reference = bench.dense
        if dense is None:
            return {"model": asdict(reference)}
        notify(f"measuring {public_name(source)}")
        model, close = bench.measure(source.folder, program=settings.trust_remote_code)
        return {"model": asdict(model), "dense": asdict(reference), "closeness": asdict(close)}

    models = [Checkpoint.open(each.folder).fingerprint() for each in (source, dense) if each]
    found = results.get(f"images-{cache_key(models, bench.key)}", measure)
    evaluation = ImageEvaluation(
        public_name(source),
        scores_of(found["model"]),
        public_name(dense) if dense else None,
        scores_of(found["dense"]) if dense else None,
        closeness_of(found["closeness"]) if dense else None,
        bench.protocol,
        settings.command(),
    )
    results.save(evaluation.to_dict())
    return evaluation
