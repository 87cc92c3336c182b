import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import tiny_model
from transformers import CONFIG_MAPPING

from llmfold import UsageError
from llmfold.evaluation import loading as module
from llmfold.evaluation.loading import Loading, fits, max_positions, opened, placed

CPU = torch.device("cpu")
Place = int | str


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("half") / "tiny", dtype=torch.bfloat16)


def test_a_model_fits_within_the_limit_and_within_what_the_cgroup_leaves(
    session_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (session_model / "model.safetensors").stat().st_size
    assert fits(session_model, Loading(None))
    assert not fits(session_model, Loading(None, limits={"all": size // 2}))
    monkeypatch.setattr(module, "available_memory", lambda: size)
    assert not fits(session_model, Loading(None))
    with placed(session_model, Loading(None)) as options:
        assert options["device_map"] == "auto"
        assert options["max_memory"]["cpu"] < size


def test_weights_stay_as_stored_where_the_dtype_of_the_arithmetic_has_no_room(half: Path) -> None:
    size = (half / "model.safetensors").stat().st_size
    roomy, tight, none = (Loading(limits={"cpu": limit}) for limit in (2 * size, size, size // 4))
    assert [fits(half, loading) for loading in (roomy, tight, none)] == [True, False, False]
    assert fits(half, replace(tight, dtype=None))
    tokens = torch.arange(20).view(2, 10)
    found = {}
    for loading in (roomy, tight):
        with opened(half, loading) as model:
            found[(loading.limits or {})["cpu"]] = model(tokens).logits
            assert model.model.layers[0].mlp.up_proj.weight.dtype == (
                torch.float32 if loading is roomy else torch.bfloat16
            )
    assert found[size].dtype == torch.float32
    torch.testing.assert_close(found[size], found[2 * size])
    with placed(half, none) as options:
        assert options["device_map"] == "auto"
        assert options["max_memory"]["cpu"] == size // 4
    assert fits(half, Loading(limits={0: 1, "cpu": 2 * size}))  # what another device may hold is no bound here


@pytest.mark.parametrize(
    ("device", "free", "places"),
    [
        ("cpu", {0: 5, 1: 5}, ["cpu"]),
        ("cpu", {"mps": 5}, ["cpu"]),
        ("cuda", {0: 5, 1: 5, "cpu": 5}, [0, 1, "cpu"]),
        ("cuda:1", {0: 5, 1: 5, "cpu": 5}, [1, "cpu"]),
    ],
)
def test_what_does_not_fit_stays_on_the_device_that_was_named_and_on_the_host(
    session_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    free: dict[int | str, int],
    places: list[int | str],
) -> None:
    monkeypatch.setattr(module, "get_max_memory", lambda: free)
    monkeypatch.setattr(module, "available_memory", lambda: 5)
    with placed(session_model, Loading(None, torch.device(device))) as options:
        assert list(options["max_memory"]) == places


@pytest.mark.parametrize("family", ["llava", "smolvlm", "gpt2"])
def test_positions_and_vocabulary_are_those_of_the_language_part(family: str) -> None:
    config = CONFIG_MAPPING[family]()
    checkpoint = SimpleNamespace(config=json.loads(config.to_json_string(use_diff=False)))
    text = config.get_text_config(decoder=True)
    assert max_positions(checkpoint) == text.max_position_embeddings  # type: ignore[arg-type]


def test_one_dtype_for_all_models(half: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmfold.runtime.devices.multiplies_bfloat16", lambda: True)
    assert Loading.of("auto", CPU, half).dtype == torch.bfloat16
    assert Loading.of("auto", CPU, half, half).dtype == torch.bfloat16
    assert Loading.of("auto", CPU, half, session_model).dtype == torch.float32
    assert Loading.of("float16", CPU, half).dtype == torch.float16
    monkeypatch.setattr("llmfold.runtime.devices.multiplies_bfloat16", lambda: False)
    assert Loading.of("auto", CPU, half) == Loading(torch.float32)
    assert (Loading().words, Loading(None).words) == ("float32", "as stored")
    with pytest.raises(UsageError, match="--compute-dtype"):
        Loading.of("int8", CPU, half)
