"""Folding by activations: exactness where nothing is lost, determinism, resumption, and what the report says."""

import json
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import FAMILIES, SINGLE, file_hashes, fold, forked, tiny_model
from transformers import AutoModelForCausalLM

from llmfold import FoldReport
from llmfold.checkpoint import Journal
from llmfold.data import tokens as tk
from llmfold.data.sampling import Sampler
from llmfold.errors import CheckpointError, OutputError
from llmfold.methods import source as source_module
from llmfold.methods.reconstruction import losses
from llmfold.methods.reconstruction.losses import Losses
from llmfold.methods.reconstruction.orders import Orders
from llmfold.methods.reconstruction.population import Population
from llmfold.methods.reconstruction.refitting import RIDGES
from llmfold.planning import Sensitivities
from llmfold.selection.elimination import Elimination

MEASURED: dict[str, Any] = {"num_samples": 16, "sequence_length": 32}
MEASURED_BY: dict[str, dict[str, Any]] = {"self": MEASURED, "weights": {"effort": "quick"}}


def logits(folder: Path, **loading: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **loading).eval()
    tokens = (torch.arange(24) * 5 + 1)[None] % model.config.vocab_size
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


def with_duplicates(folder: Path) -> Path:
    """Make the last quarter of the neurons scaled copies of the first: they can go without any loss."""
    path = folder / SINGLE
    tensors = load_file(path)
    for name in list(tensors):
        if name.endswith("gate_proj.weight"):
            tensors[name][36:] = tensors[name][:12]
        if name.endswith("up_proj.weight"):
            tensors[name][36:] = -0.5 * tensors[name][:12]
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["self", "weights"])
def test_redundant_neurons_go_without_loss(tmp_path: Path, method: str) -> None:
    model = with_duplicates(tiny_model(tmp_path / "m"))
    options = {"self": {"num_samples": 64, "refine": 0}, "weights": {"effort": "quick"}}[method]
    fold(model, method=method, mlp_ratio=0.25, output=tmp_path / "out", **options)
    before, after = logits(model), logits(tmp_path / "out")
    assert (before - after).norm() < 2e-2 * before.norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["self", "weights"])
def test_every_family_folds_and_passes_its_check(tmp_path: Path, family: str, method: str) -> None:
    model = tiny_model(tmp_path / "m", family)
    report = fold(model, method=method, ratio=0.25, output=tmp_path / "out", **MEASURED_BY[method])
    assert report.verification["mode"] == "full"
    assert report.ratio == pytest.approx(0.25, abs=0.02)


def test_biases_are_fitted(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", attention_bias=True, mlp_bias=True)
    fold(model, method="self", mlp_ratio=0.3, attention_ratio=0.5, output=tmp_path / "out", **MEASURED)
    before, after = load_file(model / SINGLE), load_file(tmp_path / "out" / SINGLE)
    for name in ("mlp.down_proj.bias", "self_attn.o_proj.bias"):
        assert not torch.equal(before[f"model.layers.1.{name}"], after[f"model.layers.1.{name}"])


@pytest.mark.parametrize("family", ["llama", "Phi3"])
def test_multi_query_attention_loses_query_heads(tmp_path: Path, family: str) -> None:
    """Keys and values stay, as tensors of their own or in one with the queries."""
    model = tiny_model(tmp_path / "m", family, num_key_value_heads=1, pad_token_id=0)
    report = fold(model, method="self", attention_ratio=0.5, output=tmp_path / "out", **MEASURED)
    assert report.plan["layers"][0]["after"] == {"intermediate": 48, "heads": 2, "kv_heads": 1}


def test_repair_beats_dropping_the_same_units(tmp_path: Path) -> None:
    report = fold(tiny_model(tmp_path / "m"), method="self", mlp_ratio=0.3, output=tmp_path / "out", num_samples=64)
    for layer in report.layers:
        assert layer["mlp"]["error_after_repair"] < layer["mlp"]["error_before_repair"]
        assert layer["mlp"]["ridge"] in RIDGES


def test_refinement_is_judged_against_what_has_not_seen_the_rows_held_back(tmp_path: Path) -> None:
    """A closed form that had been fitted to them would win unfairly."""
    model = tiny_model(tmp_path / "m")
    options: dict[str, Any] = {"method": "self", "mlp_ratio": 0.5, **MEASURED}
    closed, refined = (fold(model, output=tmp_path / str(n), refine=n, **options).layers for n in (0, 40))
    for before, after in zip(closed, refined, strict=True):
        assert after["mlp"]["error_after_repair"] == pytest.approx(before["mlp"]["error_after_repair"], rel=1e-4)
    first = refined[0]["mlp"]  # behind which nothing is wrong yet
    assert first["refined_errors"][0] == pytest.approx(first["error_after_repair"], rel=1e-4)


def test_where_nothing_is_corrected_the_error_after_repair_is_that_of_the_refined(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", "Gemma2")
    report = fold(model, method="self", mlp_ratio=0.5, output=tmp_path / "out", refine=40, **MEASURED)
    for layer in report.layers:
        assert layer["mlp"]["error_after_repair"] == pytest.approx(min(layer["mlp"]["refined_errors"]), rel=1e-4)


def test_adaptive_widths_load_with_their_modelling_file(tmp_path: Path) -> None:
    report = fold(
        tiny_model(tmp_path / "m", num_hidden_layers=3),
        method="self",
        ratio=0.3,
        allocation="adaptive",
        output=tmp_path / "out",
        **MEASURED,
    )
    assert torch.isfinite(logits(tmp_path / "out", trust_remote_code=True)).all()
    assert report.ratio == pytest.approx(0.3, abs=0.01)


def test_heads_that_are_given_stay_and_what_they_lose_alone_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, begin = [], Losses.begin

    def noted(losses: Losses, inputs: Any, narrowed: Any) -> None:
        judged.extend(narrowed)
        begin(losses, inputs, narrowed)

    monkeypatch.setattr(Losses, "begin", noted)
    model, options = tiny_model(tmp_path / "m", num_hidden_layers=3), {"method": "self", "allocation": "adaptive"}
    report = fold(model, ratio=0.2, attention_ratio=0, output=tmp_path / "out", **options, **MEASURED)
    layers = report.plan["layers"]
    assert judged == ["neurons"] * 3
    assert all(layer["after"]["heads"] == layer["before"]["heads"] for layer in layers)
    assert len({layer["after"]["intermediate"] for layer in layers}) > 1
    assert report.ratio == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(("dear", "kept"), [("neurons", 2), ("heads", 4)])
def test_the_split_is_by_what_parts_of_all_layers_lose_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dear: str, kept: int
) -> None:
    monkeypatch.setattr(Losses, "loss_together", lambda _, part: 1e3 if part == dear else None)
    report = fold(tiny_model(tmp_path / "m"), method="self", ratio=0.2, output=tmp_path / "out", **MEASURED)
    assert {layer["after"]["heads"] for layer in report.plan["layers"]} == {kept}


def test_a_fold_of_several_widths_is_sampled_from_and_folded_again(tmp_path: Path) -> None:
    """Its modelling file runs if it is what llmfold writes, and else not."""
    model = tiny_model(tmp_path / "m", num_hidden_layers=3)
    once = fold(model, layers={1: {"mlp": 0.5}}, output=tmp_path / "once").output
    twice = fold(once, method="self", mlp_ratio=0.25, output=tmp_path / "twice", fidelity_tokens=64, **MEASURED)
    assert twice.quality is not None
    assert [layer["after"]["intermediate"] for layer in twice.plan["layers"]] == [36, 18, 36]
    (once / "modeling_llmfold.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(CheckpointError, match="is not what this version of llmfold writes"):
        fold(once, method="self", mlp_ratio=0.25, output=tmp_path / "not", **MEASURED)


def test_the_report_says_what_data_was_used(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    own = fold(model, method="self", mlp_ratio=0.2, output=tmp_path / "self", **MEASURED)
    none = fold(model, method="weights", mlp_ratio=0.2, output=tmp_path / "weights", effort="quick")
    assert own.data["data"] == "sampled from the model itself"
    assert own.data["sequences"] * own.data["sequence_length"] == 512
    assert none.data["data"] == "none"
    assert json.loads((tmp_path / "self" / "report.json").read_text())["data"] == own.data


@pytest.mark.parametrize("method", ["self", "weights"])
def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path, method: str) -> None:
    model = tiny_model(tmp_path / "m")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fold(model, method=method, ratio=0.2, seed=seed, output=tmp_path / name, **MEASURED_BY[method])
    weights = [(tmp_path / name / SINGLE).read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def killed(model: Path, out: Path, unit: str, **options: Any) -> None:
    """Fold in a fork that is killed when it has journalled ``unit``."""

    def work() -> None:
        append = Journal.append

        def dying(self: Journal, done: str, *rest: Any) -> None:
            append(self, done, *rest)
            if done == unit:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.append = dying  # type: ignore[method-assign]
        fold(model, output=out, **options)

    assert forked(work) == -signal.SIGKILL


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("deep") / "m", num_hidden_layers=3)


@pytest.fixture(scope="module")
def undisturbed(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FoldReport]:
    """By method, the fold that was not killed."""

    @cache
    def made(method: str) -> FoldReport:
        return fold(
            deep, method=method, ratio=0.3, output=tmp_path_factory.mktemp("whole") / method, **MEASURED_BY[method]
        )

    return made


@pytest.mark.parametrize("method", ["self", "weights"])
@pytest.mark.parametrize("unit", ["method", "outside", "layer-0", "layer-1", "layer-2"])
def test_a_killed_run_ends_with_the_same_bytes(
    tmp_path: Path, deep: Path, undisturbed: Callable[[str], FoldReport], method: str, unit: str
) -> None:
    options = {"method": method, "ratio": 0.3, **MEASURED_BY[method]}
    killed(deep, tmp_path / "killed", unit, **options)
    assert not (tmp_path / "killed").exists()
    resumed, whole = fold(deep, output=tmp_path / "killed", **options), undisturbed(method)
    assert resumed.resumed_layers == {"layer-0": 1, "layer-1": 2, "layer-2": 3}.get(unit, 0)
    assert {p.name for p in whole.output.iterdir()} == {p.name for p in (tmp_path / "killed").iterdir()}
    assert file_hashes(tmp_path / "killed") == file_hashes(whole.output)
    assert resumed.data == whole.data
    assert [layer["mlp"] for layer in resumed.layers] == [layer["mlp"] for layer in whole.layers]


def test_a_resumed_run_takes_the_prior_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = tiny_model(tmp_path / "m"), {"method": "weights", "ratio": 0.3, **MEASURED_BY["weights"]}
    killed(model, tmp_path / "killed", "layer-0", **options)
    monkeypatch.setattr(Population, "prior", None)
    resumed = fold(model, output=tmp_path / "killed", **options)
    assert resumed.resumed_layers == 1


def test_a_killed_run_leaves_layers_that_are_not_narrowed_alone(tmp_path: Path) -> None:
    """Nothing corrects what another layer got wrong, whether the run was interrupted or not."""
    model = tiny_model(tmp_path / "m", num_hidden_layers=4)
    options: dict[str, Any] = {"method": "self", "layers": {"2": {"mlp": 0.5}}, **MEASURED}
    killed(model, tmp_path / "killed", "layer-0", **options)
    for name in ("killed", "whole"):
        fold(model, output=tmp_path / name, **options)
    assert (tmp_path / "killed" / SINGLE).read_bytes() == (tmp_path / "whole" / SINGLE).read_bytes()
    before, after = load_file(model / SINGLE), load_file(tmp_path / "whole" / SINGLE)
    changed = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"2"}


def test_the_repair_knows_the_dtype_that_is_written(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", dtype=torch.bfloat16)
    fold(model, method="self", mlp_ratio=0.2, dtype="float32", output=tmp_path / "out", **MEASURED)
    down = load_file(tmp_path / "out" / SINGLE)["model.layers.1.mlp.down_proj.weight"]
    assert not torch.equal(down, down.bfloat16().float())


def test_without_refinement_a_layer_does_not_depend_on_what_others_lose(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", num_hidden_layers=3)
    for name, layers in (("alone", {"1": {"mlp": 0.5}}), ("all", {"0-2": {"mlp": 0.5, "attention": 0.5}})):
        fold(model, method="self", layers=layers, refine=0, output=tmp_path / name, **MEASURED)
    alone, every = (load_file(tmp_path / name / SINGLE) for name in ("alone", "all"))
    for name in ("gate", "up", "down"):
        key = f"model.layers.1.mlp.{name}_proj.weight"
        assert torch.equal(alone[key], every[key])


@pytest.mark.parametrize("some", [8, 16])
def test_measured_widths_and_given_ones_fold_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: int
) -> None:
    """What is eliminated on all sequences when widths are measured is taken up; the fold does what is left to do."""
    monkeypatch.setattr(losses, "sequences_for_curves", lambda *_: some)
    model, eliminated, find = tiny_model(tmp_path / "m"), list[int](), Orders.find

    def counted(orders: Orders, index: int, part: str, keep: int, eliminate: Callable[[], Elimination]) -> Elimination:
        def noted() -> Elimination:
            eliminated.append(orders.sequences)
            return eliminate()

        return find(orders, index, part, keep, noted)

    with monkeypatch.context() as patch:
        patch.setattr(Orders, "find", counted)
        measured = fold(model, method="self", ratio=0.25, output=tmp_path / "measured", **MEASURED)
    assert eliminated[:4] == [some] * 4
    assert set(eliminated) == {some, 16}
    assert len(eliminated) == 4 or some < 16
    widths = measured.plan["layers"][0]
    given = {
        "mlp": 1 - widths["after"]["intermediate"] / widths["before"]["intermediate"],
        "attention": 1 - widths["after"]["heads"] / widths["before"]["heads"],
    }
    fold(model, method="self", layers={"0-1": given}, output=tmp_path / "given", **MEASURED)
    assert (tmp_path / "measured" / SINGLE).read_bytes() == (tmp_path / "given" / SINGLE).read_bytes()


def test_a_model_offloaded_while_it_samples_folds_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "m")
    placed: list[dict[str, Any]] = []
    load = source_module.load_model

    def spied(*arguments: Any, **options: Any) -> Any:
        placed.append(options)
        return load(*arguments, **options)

    monkeypatch.setattr(source_module, "load_model", spied)
    options: dict[str, Any] = {"method": "self", "ratio": 0.25, "num_samples": 16, "sequence_length": 8}
    fold(model, output=tmp_path / "held", **options)
    fold(model, output=tmp_path / "offloaded", max_memory=1 << 15, **options)
    assert "device_map" not in placed[0]
    assert placed[1]["device_map"] == "auto"
    held, offloaded = (file_hashes(tmp_path / name) for name in ("held", "offloaded"))
    assert {name for name in held if held[name] != offloaded[name]} <= {
        "README.md",
        "llmfold.json",
    }  # which name the option


def test_what_was_sampled_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tiny_model(tmp_path / "m"), tmp_path / "out"
    partial = tmp_path / ".out.llmfold-partial"

    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Sensitivities, "save", full)
        with pytest.raises(OutputError, match="full"):
            fold(model, method="self", ratio=0.25, output=out, **MEASURED)
    assert (partial / tk.TOKENS_FILE).exists()
    monkeypatch.setattr(Sampler, "sample", full)
    fold(model, method="self", ratio=0.25, output=out, **MEASURED)
    assert not partial.exists()
