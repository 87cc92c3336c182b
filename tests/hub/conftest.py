"""A hub on the loopback, and a finished output to push there."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from support import fold

from hub.loopback import TOKEN, Hub

TEMPLATE = "additional_chat_templates/rag.jinja"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that the client takes for the real one; large files go by LFS, and waiting takes no time."""
    server = Hub()
    for name, value in (("ENDPOINT", server.endpoint), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    yield server
    server.close()
    assert server.leaks == [], "the token was sent to storage"


@pytest.fixture(scope="session")
def session_output(session_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output of several shards, that no test may change."""
    source = tmp_path_factory.mktemp("hub") / "tiny"
    shutil.copytree(session_model, source)
    (source / TEMPLATE).parent.mkdir()
    (source / TEMPLATE).write_text("{{ messages }}")
    (source / "LICENSE").write_text("MIT")
    (source / "README.md").write_text(
        "---\nlicense: mit\nlanguage: [en, no]\ndatasets: [secret]\n---\n# The source's own card"
    )
    return fold(source, ratio=0.2, max_shard_size="20KB", output=source.with_name("out")).output


@pytest.fixture
def output(session_output: Path, tmp_path: Path) -> Path:
    """A finished output of one's own."""
    return Path(shutil.copytree(session_output, tmp_path / "out"))
