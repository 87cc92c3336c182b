"""What an evaluation found: numbers of one model, of the dense one beside it, and the file that keeps both."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llmfold.environment import machine_words, versions
from llmfold.errors import UsageError
from llmfold.evaluation.fidelity import Fidelity
from llmfold.evaluation.perplexity import Perplexity
from llmfold.evaluation.samples import Sample
from llmfold.evaluation.speed import ModelSpeed, Speed
from llmfold.evaluation.zeroshot import TaskScore
from llmfold.runtime.storage import write_text

FORMAT = 1


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
    failures: list[str] = field(default_factory=list)
    compute_dtype: str | None = None
    command: str | None = None
    versions: dict[str, str] = field(default_factory=partial(versions, "lm-eval", "datasets"))
    machine: str = field(default_factory=machine_words)
    samples: list[Sample] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """The inverse of :meth:`to_dict`."""
        fidelity = content["fidelity"]
        return cls(
            _scores(content["model"]),
            _scores(content["dense"]) if content["dense"] else None,
            Fidelity(**fidelity) if fidelity else None,
            content["fidelity_protocol"],
            _speed(content["speed"]),
            _speed(content.get("computed_speed")),
            list(content["failures"]),
            content.get("compute_dtype"),
            content["command"],
            dict(content["versions"]),
            content["machine"],
            [Sample(**sample) for sample in content.get("samples", ())],
        )


def _speed(content: Mapping[str, Any] | None) -> Speed | None:
    if content is None:
        return None
    sides = {side: ModelSpeed(**content[side]) for side in ("model", "dense")}
    return Speed(**{"dtype": "as stored", **content, **sides})


def _scores(content: Mapping[str, Any]) -> ModelScores:
    perplexity = content["perplexity"]
    tasks = {name: task_score(found) for name, found in content["tasks"].items()}
    return ModelScores(content["name"], Perplexity(**perplexity) if perplexity else None, tasks)


def task_score(content: Mapping[str, Any]) -> TaskScore:
    """A score that was saved as plain data."""
    metrics = {metric: (value, error) for metric, (value, error) in content["metrics"].items()}
    return TaskScore(**{**content, "metrics": metrics})


class Finished:
    """Results by what decides them, kept in a file so that an interrupted evaluation goes on where it stopped."""

    def __init__(self, path: Path | None) -> None:
        """Read what an earlier run left at ``path``; with None, results live as long as this object.

        Raises:
            UsageError: the file there is not one of ours.
        """
        self._path = path
        self._content: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] == FORMAT:
                self._content = dict(content["finished"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is no evaluation that can be continued: remove it, or pass another --output"
            ) from error

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result under ``key``; measured, and saved at once, if it is new."""
        if key not in self._content:
            self._content[key] = measure()
            self.save({})
        found: dict[str, Any] = self._content[key]
        return found

    def save(self, head: dict[str, Any]) -> None:
        """Write the file whole, ``head`` first."""
        if self._path is not None:
            content = {"format": FORMAT, **head, "finished": self._content}
            write_text(self._path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
