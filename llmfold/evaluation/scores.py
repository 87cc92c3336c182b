"""Results of an evaluation: numbers of one model, and of the dense one beside it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

from llmfold.environment import machine_words, versions
from llmfold.evaluation.engine_speed import EngineSpeed, engine_speed_of
from llmfold.evaluation.fidelity import Fidelity
from llmfold.evaluation.perplexity import Perplexity
from llmfold.evaluation.samples import Sample
from llmfold.evaluation.speed import ModelSpeed, Speed
from llmfold.evaluation.zeroshot import TaskScore


@dataclass
class ModelScores:
    """Numbers of one model; None or empty where nothing was measured."""

    name: str
    perplexity: Perplexity | None = None
    tasks: dict[str, TaskScore] = field(default_factory=dict)


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        model: the model in question.
        dense: the one it was folded from, if named.
        fidelity: of the model to the dense one.
        fidelity_protocol: how, in words.
        speed: of both, in the same run, in the dtype stored.
        computed_speed: the same in the dtype of the evaluation, where that is another.
        llama_cpp: speed of both in llama.cpp, where that is installed.
        failures: what could not be measured, a sentence each.
        compute_dtype: of the arithmetic, in words.
        command: that measured.
        versions: of the packages that measured.
        machine: that measured, in words.
        samples: prompts continued by both; none where the dense model has no tokenizer or does not fit in memory.
    """

    model: ModelScores
    dense: ModelScores | None = None
    fidelity: Fidelity | None = None
    fidelity_protocol: str | None = None
    speed: Speed | None = None
    computed_speed: Speed | None = None
    llama_cpp: EngineSpeed | None = None
    failures: list[str] = field(default_factory=list)
    compute_dtype: str | None = None
    command: str | None = None
    versions: dict[str, str] = field(default_factory=partial(versions, "lm-eval", "datasets"))
    machine: str = field(default_factory=machine_words)
    samples: list[Sample] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """The inverse of :meth:`to_dict`; what ``content`` holds beside it is not looked at."""
        values = {each.name: content[each.name] for each in fields(cls) if each.name in content}
        for name, build in _PARTS.items():
            if values.get(name):
                values[name] = build(values[name])
        return cls(**values)


def task_score(content: Mapping[str, Any]) -> TaskScore:
    """A score that was saved as plain data."""
    metrics = {metric: (value, error) for metric, (value, error) in content["metrics"].items()}
    return TaskScore(**{**content, "metrics": metrics})


def _model_scores(content: Mapping[str, Any]) -> ModelScores:
    perplexity = content["perplexity"]
    tasks = {name: task_score(score) for name, score in content["tasks"].items()}
    return ModelScores(content["name"], Perplexity(**perplexity) if perplexity else None, tasks)


def _speed(content: Mapping[str, Any]) -> Speed:
    sides = {side: ModelSpeed(**content[side]) for side in ("model", "dense")}
    return Speed(**{"dtype": "as stored", **content, **sides})


_PARTS: dict[str, Callable[[Any], Any]] = {
    "model": _model_scores,
    "dense": _model_scores,
    "fidelity": lambda content: Fidelity(**content),
    "speed": _speed,
    "computed_speed": _speed,
    "llama_cpp": engine_speed_of,
    "samples": lambda content: [Sample(**sample) for sample in content],
}
"""What builds each part of an evaluation from plain data."""
