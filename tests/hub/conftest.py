"""A finished output to push."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def output(session_output: Path, tmp_path: Path) -> Path:
    """A finished output of one's own."""
    return Path(shutil.copytree(session_output, tmp_path / "out"))
