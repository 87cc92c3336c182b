"""Models by the name a user types: the shipped demo, a local folder, or a hub id."""

import re

from llmfold.checkpoint import Source, resolve
from llmfold.demo import DEMO_NAME, demo_folder

_SNAPSHOT = re.compile(r"/models--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})$")


def locate(model: str, revision: str | None = None) -> Source:
    """The folder of ``model``: ``demo``, a local folder or a hub id (downloaded as needed).

    A local folder that is a snapshot in a cache of the hub goes by the name and the commit that it has there.

    Raises:
        CheckpointError: it cannot be had.
    """
    if model == DEMO_NAME:
        return Source(demo_folder(), DEMO_NAME, None)
    source = resolve(model, revision=revision)
    cached = _SNAPSHOT.search(source.folder.absolute().as_posix())
    if source.revision is None and cached:
        return Source(source.folder, cached["name"].replace("--", "/"), cached["commit"])
    return source


def public_name(source: Source) -> str:
    """What may be published of the name: hub ids and ``demo`` as they are, a local folder by its last part."""
    local = source.revision is None and source.name != DEMO_NAME
    return source.folder.resolve().name if local else source.name
