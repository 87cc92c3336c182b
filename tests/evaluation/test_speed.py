import json
from pathlib import Path

import pytest
from support import fold, tiny_model

from llmfold import CheckpointError, UsageError
from llmfold.demo import demo_folder
from llmfold.evaluation.engine_speed import EngineSpeed, FileSpeed, llama_cpp_speed
from llmfold.evaluation.loading import Loading
from llmfold.evaluation.scores import Evaluation, ModelScores
from llmfold.evaluation.speed import ModelSpeed, Speed, SpeedSettings, _verdict, medians, ratios, speed
from llmfold.report.scoreboard import document


@pytest.mark.parametrize("start", ["forked_workers", pytest.param("tmp_path", marks=pytest.mark.slow, id="spawned")])
def test_two_models_are_timed_side_by_side(
    session_model: Path, space: Path, request: pytest.FixtureRequest, start: str
) -> None:
    request.getfixturevalue(start)
    folded = fold(session_model, mlp_ratio=0.5, output=space / "folded").output
    found = speed(folded, session_model, Loading(None), SpeedSettings(batch=2, prompt=16, new=4, rounds=1))
    for one in (found.model, found.dense):
        assert one.prefill > 0
        assert one.decode > 0
        assert one.peak_memory_bytes > 10_000_000
        assert one.many_prefill
        assert one.many_decode
        assert one.load_seconds
    assert found.model.disk_bytes == sum(path.stat().st_size for path in folded.glob("*.safetensors"))
    assert found.model.disk_bytes < found.dense.disk_bytes
    assert found.decode_ratio == pytest.approx(found.model.decode / found.dense.decode)
    assert found.many_decode_ratio == pytest.approx(found.model.many_decode / found.dense.many_decode)
    assert "batch 2 and 8, float32 as stored, cpu" in found.protocol
    assert found.dtype == "float32 as stored"


def test_rounds_are_compared_one_by_one_and_the_middle_one_counts() -> None:
    rounds = [[(10.0, 4.0), (20.0, 2.0)], [(1.0, 1.0), (3.0, 2.0)], [(30.0, 8.0), (30.0, 8.0)]]
    assert medians(rounds, 0) == (10.0, 4.0)
    assert medians(rounds, 1) == (20.0, 2.0)
    assert ratios(rounds) == (2.0, 1.0)


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
def test_a_model_that_hands_no_cache_on_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", "RecurrentGemma", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="RecurrentGemmaForCausalLM hands no cache on"):
        speed(model, model, Loading(), SpeedSettings(1, 4, 2, 1))


@pytest.mark.usefixtures("forked_workers")
def test_a_model_that_will_not_load_is_named(session_model: Path, tmp_path: Path) -> None:
    broken = tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="broken"):
        speed(broken, session_model, Loading(), SpeedSettings(prompt=8, new=2))


def _evaluation(model: ModelSpeed, **more: object) -> Evaluation:
    timed = Speed(model, model, 1.5, 1.2, "gained", "protocol", "float32 as stored", **more)
    return Evaluation(ModelScores("m"), ModelScores("d"), speed=timed)


def test_every_speed_is_shown_with_the_machine_and_kept_as_json() -> None:
    evaluation = _evaluation(
        ModelSpeed(10, 20, 30, 40, many_prefill=111, many_decode=222, load_seconds=0.25),
        many_prefill_ratio=1.75,
        many_decode_ratio=1.25,
    )
    file = FileSpeed(333, 444, 0.5, 5_000_000)
    evaluation.llama_cpp = EngineSpeed("how", "bf16", file, file, 1.625, 1.375)
    text = document(evaluation)
    for row in (
        "prefill, 8 sequences at once, float32 as stored | 111 | 111 | 1.75",
        "decode, 8 sequences at once, float32 as stored | 222 | 222 | 1.25",
        "seconds to load, float32 as stored | 0.25 | 0.25 | 1.00",
        "llama.cpp: prefill, tokens per second, bf16 | 333 | 333 | 1.62",
        "llama.cpp: decode, tokens per second, bf16 | 444 | 444 | 1.38",
        "llama.cpp: file | 5.0 MB | 5.0 MB | 1.00",
        f"Timed on {evaluation.machine}.",
        "llama.cpp: how.",
    ):
        assert row in text, row
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation


def test_results_of_an_earlier_version_are_read_and_shown() -> None:
    evaluation = _evaluation(ModelSpeed(10, 20, 30, 40))
    content = evaluation.to_dict()
    for side in ("model", "dense"):
        for name in ("many_prefill", "many_decode", "load_seconds"):
            del content["speed"][side][name]
    del content["llama_cpp"]
    assert Evaluation.from_dict(content) == evaluation
    assert "at once" not in document(evaluation)
    assert "llama.cpp" not in document(evaluation)


def test_a_model_that_cannot_be_exported_is_not_timed_and_the_reason_is_said(session_model: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'llmfold[gguf]'")
    found = llama_cpp_speed(session_model, session_model, SpeedSettings(prompt=8, new=2))
    assert "not timed" in found.protocol
    assert "has no tokenizer" in found.protocol
    assert found.model is None


@pytest.mark.slow
def test_llama_cpp_times_both(tmp_path: Path) -> None:
    for package in ("gguf", "xllamacpp"):
        pytest.importorskip(package, reason=f"the package {package} is not installed: pip install {package}")
    folded = fold("demo", mlp_ratio=0.5, output=tmp_path / "folded").output
    found = llama_cpp_speed(folded, demo_folder(), SpeedSettings(prompt=16, new=4, rounds=2))
    assert found.model
    assert found.dense
    assert min(found.model.prefill, found.model.decode, found.dense.prefill, found.dense.decode) > 0
    assert found.model.file_bytes < found.dense.file_bytes
    assert found.dtype == "bf16"
