"""Recipe files: the options of a fold as YAML, with per-layer overrides by index or range."""

import dataclasses
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from llmfold.config import FoldConfig, LayerOverride, check_fraction
from llmfold.errors import UsageError
from llmfold.plain_yaml import MAX_CHARACTERS, BoundedLoader, load

MAX_LAYERS = 100_000
_SPAN = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


class _UniqueKeys(BoundedLoader):
    """YAML lets a repeated key win silently; a recipe must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, refusing repeated keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [str(key) for key, count in Counter(keys).items() if count > 1]
        if repeated:
            raise UsageError(f"key {sorted(repeated)[0]!r} stands twice")
        return super().construct_mapping(node, deep)


def _span(key: object) -> range:
    match = _SPAN.fullmatch(str(key).strip())
    if not match:
        raise UsageError(f"layers: {key!r} is neither a layer index nor a range such as 5-10")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UsageError(f"layers: range {key!r} ends before it begins")
    if last >= MAX_LAYERS:
        raise UsageError(f"layers: no model has the layer {last} that {key!r} names")
    return range(first, last + 1)


def parse_layers(entries: Any) -> dict[int, LayerOverride]:
    """Parse ``{5-10: {mlp: 0.5}, 12: {attention: 0.25}}`` to overrides by layer.

    Raises:
        UsageError: an unknown key, a fraction outside [0, 1), or overlapping ranges.
    """
    if not isinstance(entries, Mapping):
        raise UsageError("layers must map layer indices or ranges to {mlp: …, attention: …}")
    overrides: dict[int, LayerOverride] = {}
    for key, value in entries.items():
        if not isinstance(value, Mapping) or not value:
            raise UsageError(f"layers: {key!r} must be a mapping such as {{mlp: 0.5}}")
        unknown = sorted(set(map(str, value)) - {"mlp", "attention"})
        if unknown:
            raise UsageError(f"layers: {key!r} has unknown key {unknown[0]!r}; known are mlp and attention")
        for name, fraction in value.items():
            check_fraction(fraction, f"layers: {key!r}: {name}")
        for index in _span(key):
            if index in overrides:
                raise UsageError(f"layers: layer {index} is named by two overlapping ranges, the second is {key!r}")
            overrides[index] = LayerOverride(**value)
    return overrides


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe as keyword arguments of :class:`FoldConfig`; names may be written with ``-`` or ``_``.

    Raises:
        UsageError: unreadable file, invalid YAML, unknown keys, or bad layer overrides; the message names the file.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from error
    known = {f.name for f in dataclasses.fields(FoldConfig)}
    try:
        document = load(text, _UniqueKeys)
        if not isinstance(document, Mapping):
            raise UsageError("it must be a mapping of option names to values")
        options = {str(key).replace("-", "_"): value for key, value in document.items()}
        if len(options) != len(document):
            raise UsageError("the same option is written with - and with _")
        unknown = sorted(set(options) - known)
        if unknown:
            raise UsageError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        if "layers" in options:
            options["layers"] = parse_layers(options["layers"])
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from error
    return options
