"""What may be published of a fold's options and source, and what names the text that it read."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmfold.checkpoint import Checkpoint, Source
from llmfold.checkpoint.locate import public_name
from llmfold.config import FoldConfig
from llmfold.environment import versions
from llmfold.runtime.devices import pick_device
from llmfold.runtime.storage import file_sha256


def source_name(source: Source) -> dict[str, Any]:
    """Name and revision of a model."""
    return {"name": public_name(source), "revision": source.revision}


def origin(config: FoldConfig, source: Source, checkpoint: Checkpoint) -> dict[str, Any]:
    """All that can move a bit of the result: the source's files, options, text, versions, device and threads.

    Options are those of :func:`llmfold.data.tokens.resolve_effort`.
    """
    options = {**config.work(), "model": public_name(source), "data": public_data(config.data)}
    return {
        "source": checkpoint.fingerprint(),
        "config": options,
        "versions": versions(),
        "text": text_digest(config.data),
        "device": str(pick_device(config.device)),
        "threads": torch.get_num_threads(),
    }


def origin_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of what :func:`origin` returned."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def provenance(
    source: Source, plan: Mapping[str, Any], facts: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Content of the file that marks an output as llmfold's.

    Args:
        source: the model that was read.
        plan: of the fold, as data.
        facts: what the method says of its data.
        values: as of :func:`origin`; a digest of it tells this output from one of other weights under the same name.
    """
    return {
        "made_by": "llmfold",
        "origin_sha256": origin_digest(values),
        "source": source_name(source),
        "config": values["config"],
        "plan": dict(plan),
        "data": facts.get("data", "none"),
        "versions": values["versions"],
    }


def public_config(config: FoldConfig, source: Source, data: str | None) -> dict[str, Any]:
    """Every option, folders by their names only; ``data`` as of :func:`public_data`."""
    values = dataclasses.asdict(config)
    values.update(model=public_name(source), output=config.output_path.name, align=config.alignment)
    values["data"] = data
    values["layers"] = {str(i): dataclasses.asdict(o) for i, o in sorted(config.layers.items())}
    return values


def public_data(data: str | None) -> str | None:
    """Name of the outside text that may be published: files by their last part, hub data sets as they are."""
    if data is None or not (data.startswith((".", "/", "~")) or os.path.exists(data)):
        return data
    return os.path.basename(data)


def text_digest(data: str | None) -> str | None:
    """SHA-256 of a text file, so that another text of the same name does not resume a run."""
    path = Path(os.path.expanduser(data or ""))
    return file_sha256(path) if data and path.is_file() else None
