"""Models by the name a user types: the shipped demo, a local folder, or a hub id."""

from llmfold.checkpoint import Source, resolve
from llmfold.demo import DEMO_NAME, demo_folder


def locate(model: str, revision: str | None = None) -> Source:
    """The folder of ``model``: ``demo``, a local folder or a hub id (downloaded as needed).

    Raises:
        CheckpointError: it cannot be had.
    """
    return Source(demo_folder(), DEMO_NAME, None) if model == DEMO_NAME else resolve(model, revision=revision)


def public_name(source: Source) -> str:
    """What may be published of the name: hub ids and ``demo`` as they are, a local folder by its last part."""
    local = source.revision is None and source.name != DEMO_NAME
    return source.folder.resolve().name if local else source.name
