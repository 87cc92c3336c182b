from pathlib import Path

import pytest
from support import fold, tiny_model

from llmfold import CheckpointError, UsageError
from llmfold.evaluation.loading import Loading
from llmfold.evaluation.speed import SpeedSettings, _verdict, speed


@pytest.mark.parametrize("start", ["forked_workers", pytest.param("tmp_path", marks=pytest.mark.slow, id="spawned")])
def test_two_models_are_timed_side_by_side(
    session_model: Path, space: Path, request: pytest.FixtureRequest, start: str
) -> None:
    request.getfixturevalue(start)
    folded = fold(session_model, mlp_ratio=0.5, output=space / "folded").output
    found = speed(folded, session_model, Loading(None), SpeedSettings(batch=2, prompt=16, new=4, rounds=2))
    for one in (found.model, found.dense):
        assert one.prefill > 0
        assert one.decode > 0
        assert one.peak_memory_bytes > 10_000_000
    assert found.model.disk_bytes == sum(path.stat().st_size for path in folded.glob("*.safetensors"))
    assert found.model.disk_bytes < found.dense.disk_bytes
    assert found.decode_ratio == pytest.approx(found.model.decode / found.dense.decode, rel=0.9)
    assert "batch 2, float32 as stored, cpu" in found.protocol
    assert found.dtype == "float32 as stored"


def test_no_gain_is_said_plainly_with_its_reason(tmp_path: Path, session_model: Path) -> None:
    assert _verdict(session_model, 1.3, 1.1) == "prefill 1.30 times as fast; decode 1.10 times as fast"
    small = _verdict(session_model, 1.3, 0.99)
    assert "decode gains nothing (0.99 times as fast): at a hidden size of 32" in small
    odd = tiny_model(tmp_path / "odd", hidden_size=1024, intermediate_size=100, vocab_size=8)
    assert "an MLP width of 100 is no multiple of 64" in _verdict(odd, 1.0, 1.0)


def test_more_tokens_than_positions_are_refused(session_model: Path) -> None:
    with pytest.raises(UsageError, match="make 160 tokens, but the model has 128 positions"):
        speed(session_model, session_model, Loading(), SpeedSettings())


@pytest.mark.usefixtures("forked_workers")
def test_a_model_that_will_not_load_is_named(session_model: Path, tmp_path: Path) -> None:
    broken = tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="broken"):
        speed(broken, session_model, Loading(), SpeedSettings(prompt=8, new=2))
