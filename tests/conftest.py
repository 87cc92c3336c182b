"""No network, one thread, no waiting for the disk, and the real checkpoints where they are to be had."""

import gc
import os
import shutil
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from hub.loopback import TOKEN, Hub
from reading import teach
from support import fold, tiny_model

TEMPLATE = "additional_chat_templates/rag.jinja"

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
# Only a power cut shows what was not waited for, and no test cuts it; a fold waits thirty times.
os.fsync = lambda fd: None


def pytest_collection_finish() -> None:
    """Take the half million objects of the imports out of every later collection: each fold collects once."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = os.environ.get("LLMFOLD_DATA")
    if not folder:
        pytest.skip("LLMFOLD_DATA is not set; it names the folder of real checkpoints and texts")
    return Path(folder)


@pytest.fixture(scope="session")
def session_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that no test may change."""
    return tiny_model(tmp_path_factory.mktemp("session") / "tiny")


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer, that no test may change."""
    return teach(tiny_model(tmp_path_factory.mktemp("reader") / "tiny"))


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 600 letters: 601 tokens with BOS."""
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text("it was a dark and stormy night.\n" * 18 + "the rain fell in torrents")
    assert len(path.read_text()) == 601
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama of one's own, in a folder of one's own."""
    return tiny_model(tmp_path / "models" / "tiny")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """An empty folder for outputs; what is left there after a failure is a bug."""
    folder = tmp_path / "space"
    folder.mkdir()
    return folder


@pytest.fixture
def llmfold(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; returns exit code, standard output and standard error."""
    from llmfold.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


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
