"""Shards, their index and headers, and files of weights that are moved, cut, linked or pickled."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from support import SINGLE

from messy.draft import POINTER, Draft
from messy.faults.kind import Kind
from messy.faults.tensors import DOWN, HEAD, NORM


def _shards(draft: Draft, value: int) -> None:
    draft.shards = value


def _index(draft: Draft, value: Callable[[dict[str, Any]], object]) -> None:
    draft.shards = max(draft.shards, 2)
    draft.index.append(value)


def _listed(name: str, file: str | None) -> Callable[[dict[str, Any]], object]:
    """An index that says of a tensor that it is in another file; in none, it is not listed; ``""`` is any of them."""

    def change(index: dict[str, Any]) -> None:
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places:
            return
        if file is None:
            places.pop(name, None)
        else:
            places[name] = file or sorted(map(str, places.values()))[0]

    return change


def _metadata(draft: Draft, value: dict[str, str] | None) -> None:
    draft.metadata = value


def _folder(draft: Draft, value: Callable[[Path], object]) -> None:
    draft.last.append(value)


def _weights_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]


def _move(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in _weights_of(folder)[:1]:
            path.rename(folder / name)

    return change


def _copied(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in _weights_of(folder)[:1]:
            (folder / name).write_bytes(path.read_bytes())

    return change


def _rewrite(change_bytes: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in _weights_of(folder)[-1:]:
            path.write_bytes(change_bytes(path.read_bytes()))

    return change


def _linked_outside(folder: Path) -> None:
    for path in _weights_of(folder)[:1]:
        target = folder.parent / f"{folder.name}-outside-{path.name}"
        path.rename(target)
        path.symlink_to(target)


def _linked_inside(folder: Path) -> None:
    for path in _weights_of(folder)[:1]:
        target = folder / ".blob"
        path.rename(target)
        path.symlink_to(target.name)


def _pickled(folder: Path) -> None:
    for path in _weights_of(folder):
        with contextlib.suppress(SafetensorError):  # another fault has been there
            torch.save(load_file(path), folder / "pytorch_model.bin")
        path.unlink()


KINDS = {
    "shards": Kind(_shards, (2, 3, 5)),
    "the index": Kind(
        _index,
        (
            _listed(HEAD, ""),
            _listed(NORM, ""),
            _listed(DOWN, None),
            _listed("no.such.tensor", ""),
            lambda index: index.pop("metadata", None),
            lambda index: index.update(metadata={}),
            lambda index: index.update(metadata=None),
            lambda index: index.update(metadata={"total_size": "many"}),
            lambda index: index.update(more=1),
        ),
    ),
    "metadata of the header": Kind(_metadata, (None, {}, {"format": "pt", "more": "x"}, {"format": "np"})),
    "another name of weights beside": Kind(
        _folder, tuple(map(_copied, ("model.fp16.safetensors", "consolidated.safetensors", "model-old.safetensors")))
    ),
    "links": Kind(_folder, (_linked_inside,)),
    "a bad index": Kind(
        _index,
        (
            _listed(NORM, "absent.safetensors"),
            _listed("no.such.tensor", "absent.safetensors"),
            _listed(NORM, "../outside.safetensors"),
            _listed(NORM, "/etc/hostname"),
            _listed(NORM, "pytorch_model.bin"),
            lambda index: index.pop("weight_map", None),
            lambda index: index.update(weight_map={}),
            lambda index: index.update(weight_map=[]),
            lambda index: index.update(weight_map={NORM: 3}),
        ),
    ),
    "bad metadata of the header": Kind(_metadata, ({"format": "tf"}, {"format": "mlx"}, {"format": "flax"})),
    "files of weights": Kind(
        _folder,
        (
            *map(_move, ("pytorch_model.safetensors", "weights.safetensors", "MODEL.safetensors")),
            *map(_copied, (SINGLE, "adapter_model.safetensors")),
            *map(
                _rewrite,
                (
                    lambda raw: raw[:-7],
                    lambda raw: raw + b"\0",
                    lambda raw: raw[:5],
                    lambda raw: b"",
                    lambda raw: POINTER,
                    lambda raw: b"PK\x03\x04" + raw,
                ),
            ),
            _linked_outside,
            _pickled,
        ),
    ),
}
