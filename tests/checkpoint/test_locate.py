from pathlib import Path

import pytest
from support import tiny_model

from llmfold.checkpoint import Source
from llmfold.checkpoint.locate import locate, public_name
from llmfold.demo import demo_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_local_folder_goes_by_its_last_part(session_model: Path) -> None:
    source = locate(str(session_model))
    assert source == Source(session_model, str(session_model), None)
    assert public_name(source) == session_model.name


def test_the_demo() -> None:
    assert locate("demo") == Source(demo_folder(), "demo", None)
    assert public_name(locate("demo")) == "demo"


@pytest.mark.parametrize(("folder", "name"), [("models--me--tiny", "me/tiny"), ("models--gpt2", "gpt2")])
def test_a_snapshot_in_the_hubs_cache_goes_by_its_name_there(tmp_path: Path, folder: str, name: str) -> None:
    """Its last part is a commit, which tells a reader nothing."""
    snapshot = tiny_model(tmp_path / folder / "snapshots" / COMMIT)
    source = locate(str(snapshot))
    assert source == Source(snapshot, name, COMMIT)
    assert public_name(source) == name
    assert locate(str(tiny_model(tmp_path / folder / "snapshots" / "mine"))).revision is None
