"""What differs between the records that two commits left of a case, and which of it is allowed.

A record is a folder: what each step said and how it exited, and every file that it wrote. Nothing here runs anything.
"""

import difflib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = 3
"""Lines of a text, and entries of a JSON file, that a difference quotes."""
WIDEST = 200
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
Part = tuple[str, str]
"""Where two records differ, and how."""


@dataclass(frozen=True)
class Difference:
    """A place where two records of a case differ, and how."""

    case: str
    place: str
    how: str

    def __str__(self) -> str:
        return f"{self.case}: {self.place}: {self.how}"


@dataclass(frozen=True)
class Fields:
    """Fields of JSON files that two runs of one commit differ in: their names, at any depth."""

    files: str
    names: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Words:
    """Words of texts that two runs of one commit differ in: a pattern, and what is read in its place."""

    files: str
    pattern: str
    why: str
    instead: str = "…"


@dataclass(frozen=True)
class Allowed:
    """A difference that is wanted: patterns of the case and of the place, as in a shell, and the reason."""

    case: str
    place: str
    why: str

    def covers(self, difference: Difference) -> bool:
        """Whether this is the difference that is meant."""
        return fnmatchcase(difference.case, self.case) and fnmatchcase(difference.place, self.place)


@dataclass(frozen=True)
class Rules:
    """What is not compared, and what may differ.

    Attributes:
        fields, words: see :class:`Fields` and :class:`Words`.
        allowed: see :class:`Allowed`.
    """

    fields: Sequence[Fields] = ()
    words: Sequence[Words] = ()
    allowed: Sequence[Allowed] = ()

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Rules":
        """From the tables ``fields``, ``words`` and ``allowed`` of a YAML file."""
        fields = [Fields(entry["files"], tuple(entry["names"]), entry["why"]) for entry in content["fields"]]
        words = [Words(**entry) for entry in content["words"]]
        return cls(fields, words, [Allowed(**entry) for entry in content["allowed"]])

    def sort(self, differences: Sequence[Difference]) -> tuple[list[Difference], dict[Allowed, list[Difference]]]:
        """Differences that nothing allows, and those that each entry allows."""
        refused: list[Difference] = []
        taken: dict[Allowed, list[Difference]] = {entry: [] for entry in self.allowed}
        for difference in differences:
            entry = next((entry for entry in self.allowed if entry.covers(difference)), None)
            (refused if entry is None else taken[entry]).append(difference)
        return refused, taken


@dataclass(frozen=True)
class Comparison:
    """Compares records of one case.

    Attributes:
        rules: of what is not compared.
        places: for either record, paths of this machine and what is read in their place.
    """

    rules: Rules
    places: tuple[Mapping[str, str], Mapping[str, str]] = field(default=({}, {}))

    def compare(self, case: str, base: Path, tree: Path) -> list[Difference]:
        """All differences between the records of the base commit and of the working tree."""
        ours, theirs = _entries(base), _entries(tree)
        found: list[Part] = []
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs or name not in ours:
                found.append((name, "only at the base" if name in ours else "not at the base"))
            elif not name.endswith("/"):
                found += self._files(name, ours[name], theirs[name])
        return [Difference(case, place, how) for place, how in found]

    def _files(self, name: str, base: Path, tree: Path) -> list[Part]:
        one, other = base.read_bytes(), tree.read_bytes()
        if one == other:
            return []
        try:
            if name.endswith(".safetensors"):
                return weights(name, one, other)
            if name.endswith(".json"):
                return self._documents(name, json.loads(one), json.loads(other))
            texts = [self.reduced(name, text.decode(), side) for side, text in enumerate((one, other))]
        except (ValueError, struct.error):
            return [(name, f"bytes differ, {len(one):,} at the base and {len(other):,} now")]
        return [] if texts[0] == texts[1] else [(name, _lines(*texts))]

    def reduced(self, name: str, text: str, side: int = 0) -> str:
        """A text without what is not compared; runs of spaces count as one, as columns go by their words."""
        for path, instead in self.places[side].items():
            text = text.replace(path, instead)
        for words in self.rules.words:
            if fnmatchcase(name, words.files):
                text = re.sub(words.pattern, words.instead, text, flags=re.MULTILINE)
        lines = (" ".join(line.split()) for line in text.splitlines())
        return "\n".join(line for line in lines if line)

    def _documents(self, name: str, base: Any, tree: Any) -> list[Part]:
        skipped = {key for entry in self.rules.fields if fnmatchcase(name, entry.files) for key in entry.names}
        one, other = (dict(_leaves(document, skipped)) for document in (base, tree))
        differing = [path for path in [*one, *(path for path in other if path not in one)] if _differ(one, other, path)]
        if not differing and list(one) != list(other):
            return [(name, "the order of its fields differs")]
        if not differing and not skipped:
            return [(name, "the same values, written in another way")]
        return [(f"{name}#{path}", f"{_quoted(one, path)} → {_quoted(other, path)}") for path in differing]


def weights(name: str, base: bytes, tree: bytes) -> list[Part]:
    """Differences of two safetensors files, tensor by tensor."""
    one, other = tensors(base), tensors(tree)
    found: list[Part] = []
    for key in sorted(one.keys() | other.keys()):
        if key not in other or key not in one:
            found.append((f"{name}#{key}", "only at the base" if key in one else "not at the base"))
        elif one[key] != other[key]:
            found.append((f"{name}#{key}", _values(one[key], other[key])))
    return found or [(name, "the same tensors, but other metadata or another order")]


def tensors(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a safetensors file, by the definition of the format."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        key: (entry["dtype"], tuple(entry["shape"]), content[start + (o := entry["data_offsets"])[0] : start + o[1]])
        for key, entry in header.items()
    }


def _values(base: tuple[str, tuple[int, ...], bytes], tree: tuple[str, tuple[int, ...], bytes]) -> str:
    """How two tensors differ."""
    if base[:2] != tree[:2]:
        return f"{base[0]} {list(base[1])} → {tree[0]} {list(tree[1])}"
    dtype, shape, _ = base
    if dtype not in _FLOATS:
        return f"bytes of {dtype} {list(shape)} differ"
    one, other = (_numbers(dtype, content) for _, _, content in (base, tree))
    gap = np.abs(one - other)
    scale = float(np.abs(one).max()) or 1.0
    return f"{np.count_nonzero(gap):,} of {gap.size:,} values differ, by up to {gap.max() / scale:.1e} of the largest"


def _numbers(dtype: str, content: bytes) -> Any:
    values = np.frombuffer(content, _FLOATS[dtype])
    if dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def _entries(folder: Path) -> dict[str, Path]:
    """Files of a record by their names in it, and its folders, whose names end with a slash; links are left out."""
    found = {}
    for path in _walk(folder):
        found[path.relative_to(folder).as_posix() + "/" * path.is_dir()] = path
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        yield path
        if path.is_dir():
            yield from _walk(path)


def _leaves(value: Any, skipped: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a JSON document by their paths, in its order; of a list its length is one."""
    if isinstance(value, list):
        yield f"{path}.length", len(value)
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in skipped:
                yield from _leaves(inner, skipped, f"{path}.{key}".lstrip("."))
        if not value:
            yield f"{path}.empty", type(value).__name__
    else:
        yield path, value


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> bool:
    """Whether a value is another, or of another type: 1 is not 1.0 in a file."""
    return path not in one or path not in other or repr(one[path]) != repr(other[path])


def _quoted(values: Mapping[str, Any], path: str) -> str:
    return repr(values[path])[:WIDEST] if path in values else "absent"


def _lines(base: str, tree: str) -> str:
    """The first lines that differ, long ones from where they do."""
    lines = list(difflib.unified_diff(base.splitlines(), tree.splitlines(), lineterm="", n=0))[2:]
    removed = [line[1:] for line in lines if line[0] == "-"][:SHOWN]
    added = [line[1:] for line in lines if line[0] == "+"][:SHOWN]
    cut = [_excerpts(*pair) for pair in zip(removed, added, strict=False)]
    removed[: len(cut)], added[: len(cut)] = [one for one, _ in cut], [other for _, other in cut]
    signed = [*(f"-{line}" for line in removed), *(f"+{line}" for line in added)]
    return "".join(f"\n      {line[: WIDEST + 1]}" for line in signed)


def _excerpts(one: str, other: str) -> tuple[str, str]:
    """Two lines; without their common beginning, but for a few words, where they are too long to be quoted whole."""
    if max(len(one), len(other)) <= WIDEST:
        return one, other
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(same - WIDEST // 4, 0)
    mark = "…" if start else ""
    return mark + one[start:], mark + other[start:]
