from pathlib import Path

import pytest

from llmfold.evaluation import loading as module
from llmfold.evaluation.loading import Loading, fits, placed


def test_a_model_fits_within_the_limit_and_within_what_the_cgroup_leaves(
    session_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (session_model / "model.safetensors").stat().st_size
    assert fits(session_model, Loading("auto"))
    assert not fits(session_model, Loading("auto"), limit=size // 2)
    monkeypatch.setattr(module, "available_memory", lambda: size)
    assert not fits(session_model, Loading("auto"))
    with placed(session_model, Loading("auto")) as options:
        assert options["device_map"] == "auto"
        assert options["max_memory"]["cpu"] < size
