"""No network, one thread, and the real checkpoints where they are to be had."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from support import tiny_model

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()


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
