"""Methods of a comparison: names of methods, each with options of its own, such as ``self:refine=0``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import yaml

from llmfold.config import FoldConfig
from llmfold.data.plain_text import TEXT_COLUMN
from llmfold.errors import UsageError
from llmfold.options import public_file
from llmfold.plain_yaml import load
from llmfold.registry import SELF_DATA, method_facts, names

_FIXED = frozenset(
    (
        *("model", "revision", "method", "ratio", "ratio_of", "layers", "seed", "output", "overwrite", "verify"),
        *("fidelity_tokens", "eval", "eval_text", "eval_data_dir", "eval_limit"),
    )
)
"""Options that are the same for all methods, or that the comparison sets itself."""


@dataclass(frozen=True)
class Variant:
    """A method with options of its own.

    Attributes:
        method: its name.
        options: fields of :class:`FoldConfig` that differ from those of the comparison.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    config: ClassVar[Any] = FoldConfig
    """Whose fields they are."""

    @classmethod
    def methods(cls) -> Sequence[str]:
        """Names of the methods that there are."""
        return names()

    @property
    def random(self) -> bool:
        """Whether another seed may give another result."""
        sampled = self.options.get("data") == SELF_DATA
        return method_facts(self.method).random or sampled or self.options.get("cluster", "ward") != "ward"

    @property
    def label(self) -> str:
        """The variant as a person would type it, files by their names only."""
        pairs = ",".join(f"{k}={public_file(v) if k == 'data' else _spell(v)}" for k, v in self.options.items())
        return f"{self.method}:{pairs}" if pairs else self.method

    def fold_options(self, data: str | None, column: str = TEXT_COLUMN, **common: Any) -> dict[str, Any]:
        """Fields of :class:`FoldConfig`: ``common`` ones, the variant's own, and where it reads text, which and how."""
        reads = {"data": data} if method_facts(self.method).needs_data else {}
        if self.options.get("data", reads.get("data")) not in (None, SELF_DATA):
            reads["text_column"] = column
        return {**common, **reads, "method": self.method, **self.options}


V = TypeVar("V", bound=Variant)


def parse_variants(text: str, kind: type[V]) -> tuple[V, ...]:
    """Parse ``paper,self:refine=0,align=none,calibrated:data=OTHER.txt``, variants of one kind of model.

    Raises:
        UsageError: an unknown method or option, something malformed, or the same variant twice.
    """
    variants = tuple(_variant(item, kind) for item in _items(text.split(",")))
    labels = [v.label for v in variants]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--methods names {label} twice")
    return variants


def _items(pieces: Sequence[str]) -> list[str]:
    """Join what the commas between a variant's own options have torn apart."""
    items: list[str] = []
    for piece in pieces:
        if items and "=" in piece and ":" not in piece.partition("=")[0]:
            items[-1] += "," + piece
        else:
            items.append(piece)
    return items


def _variant(item: str, kind: type[V]) -> V:
    method, _, rest = item.strip().partition(":")
    if method not in kind.methods():
        raise UsageError(f"--methods: there is no method {method!r}; choose from {', '.join(kind.methods())}")
    known = {f.name for f in dataclasses.fields(kind.config)} - _FIXED
    options: dict[str, Any] = {}
    for pair in rest.split(",") if rest else ():
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise UsageError(f"--methods: {item} sets {name!r}; a variant may set {', '.join(sorted(known))}")
        if not equals or not value.strip() or name in options:
            raise UsageError(f"--methods: write {item} as {method}:name=value,name=value with every name once")
        options[name] = value.strip() if name in ("data", "device") else _scalar(value)
    return kind(method, options)


def _scalar(value: str) -> Any:
    try:
        return load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--methods: {value!r} is not a value") from error


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
