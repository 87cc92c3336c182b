"""Whole blocks that go, from the command to a folder that stock transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CONFIG, FAMILIES, edit_tensors, file_hashes, fold, logits, tiny_model

import llmfold
from llmfold import FoldConfig, FoldReport, LayerOverride
from llmfold.checkpoint import Journal
from llmfold.cli import main
from llmfold.commands.fold import read_configs
from llmfold.errors import UsageError
from llmfold.methods.reconstruction.blocks import Blocks
from llmfold.methods.reconstruction.streams import Streams
from llmfold.pipeline import depth as depth_module
from llmfold.pipeline.depth import DEPTH_FILE, Depth
from llmfold.pipeline.estimate import disk_needed, estimate
from llmfold.pipeline.opening import plan_from_config

LAYERS, IDLE = 5, 3
ON_TOKENS: dict[str, Any] = {"method": "self", "num_samples": 40, "sequence_length": 12, "refine": 2}
IDS = (torch.arange(24) * 7 % 64).view(2, 12)


def idle_block(folder: Path, family: str = "llama", **options: Any) -> Path:
    """A model one of whose blocks adds nothing."""
    tiny_model(folder, family, num_hidden_layers=LAYERS, **options)
    adding = (f"model.layers.{IDLE}.{name}." for name in ("self_attn.o_proj", "mlp.down_proj"))
    starts = tuple(adding)
    edit_tensors(folder, lambda stored: [stored[name].zero_() for name in stored if name.startswith(starts)] and None)
    return folder


def folded(model: Path, output: Path, **options: Any) -> FoldReport:
    return fold(model, output=output, **{**ON_TOKENS, **options})


@pytest.mark.parametrize(
    ("family", "options"),
    [*((family, {}) for family in FAMILIES), ("llama", {"attention_bias": True, "mlp_bias": True}),
     ("llama", {"tie_word_embeddings": True})],
)  # fmt: skip
def test_a_block_that_adds_nothing_goes_and_nothing_changes(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = idle_block(tmp_path / "m", family, **options)
    report = folded(model, tmp_path / "out", depth=1)
    assert report.plan["blocks_removed"] == [IDLE]
    assert json.loads((report.output / CONFIG).read_text())["num_hidden_layers"] == LAYERS - 1
    assert len(report.layers) == len(report.plan["layers"]) == LAYERS - 1
    assert report.data["data"] == "sampled from the model itself"
    torch.testing.assert_close(logits(report.output, IDS), logits(model, IDS), rtol=1e-4, atol=1e-4)
    assert f"block {IDLE} of {LAYERS} is gone as a whole" in " ".join(report.notes)
    card = (report.output / "README.md").read_text()
    assert f"No block is narrowed; block {IDLE} of {LAYERS} is gone as a whole" in card
    assert "1 of the blocks" in card


@pytest.mark.parametrize("ratio_of", ["model", "decoder"])
@pytest.mark.parametrize("options", [{}, {"allocation": "adaptive"}, {"mlp_ratio": 0.25}], ids=str)
def test_blocks_are_a_part_of_the_ratio(tmp_path: Path, ratio_of: str, options: dict[str, Any]) -> None:
    model = idle_block(tmp_path / "m")
    plain = plan_from_config(FoldConfig(str(model), ratio=0.4, ratio_of=ratio_of, **ON_TOKENS, **options))
    report = folded(model, tmp_path / "out", ratio=0.4, ratio_of=ratio_of, depth=1, **options)
    asked = report.plan["ratio" if ratio_of == "model" else "decoder_ratio"]
    step = (48 if options.get("mlp_ratio") else 3) * 32 * 4 * 4 / plain.parameters_before
    assert asked == pytest.approx(0.4, abs=max(step, 0.02))
    assert report.plan["parameters"]["before"] == plain.parameters_before
    assert IDLE in report.plan["blocks_removed"]
    assert report.verification["tensors"] == 4 * 9 + 3


def test_auto_takes_the_blocks_that_cost_less_than_neurons(tmp_path: Path) -> None:
    model = idle_block(tmp_path / "m")
    report = folded(model, tmp_path / "out", ratio=0.3, ratio_of="decoder", depth="auto")
    assert IDLE in report.plan["blocks_removed"]
    found = json.loads((report.output / DEPTH_FILE).read_text())
    assert found["removed"] == report.plan["blocks_removed"]
    assert found["losses"][IDLE] == pytest.approx(0, abs=1e-6)
    few = folded(model, tmp_path / "few", ratio=0.02, ratio_of="decoder", depth="auto")
    assert "blocks_removed" not in few.plan  # a block is more than is to go
    without = folded(model, tmp_path / "without", ratio=0.02, ratio_of="decoder")
    same = ("report.json", "report.html", "README.md", "llmfold.json", DEPTH_FILE)
    assert file_hashes(few.output, skip=same) == file_hashes(without.output, skip=same)


def test_text_that_is_given_tells_blocks_too(tmp_path: Path, reader: Path, prose: Path) -> None:
    report = fold(reader, output=tmp_path / "out", method="calibrated", data=str(prose), depth=1, num_samples=40,
                  sequence_length=12)  # fmt: skip
    assert report.plan["blocks_removed"] == [1]
    assert report.data["data"] == "outside text: prose.txt"


def test_several_ratios_lose_the_same_blocks(tmp_path: Path) -> None:
    model = idle_block(tmp_path / "m")
    options = {**ON_TOKENS, "depth": 1, "ratio_of": "decoder", "fidelity_tokens": 0}
    reports = llmfold.sweep(model, (0.3, 0.4), output=tmp_path / "out", **options)
    alone = folded(model, tmp_path / "alone", ratio=0.3, **options)
    assert [report.plan["blocks_removed"] for report in reports] == [[IDLE], [IDLE]]
    assert file_hashes(reports[0].output) == file_hashes(alone.output)
    with pytest.raises(UsageError, match="--depth auto chooses for one --ratio"):
        read_configs({**options, "model": str(model), "depth": "auto", "ratio": (0.3, 0.4)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0, "ratio": 0.2}, r"--depth is 0; give off, auto or an integer of at least 1"),
        ({"depth": "two", "ratio": 0.2}, r"--depth is 'two'; give off, auto or an integer"),
        ({"depth": True, "ratio": 0.2}, r"--depth is True; give off, auto or an integer"),
        ({"depth": "auto"}, r"--depth auto weighs blocks against widths: it needs --ratio"),
        ({"depth": "auto", "ratio": 0.2, "mlp_ratio": 0.2}, r"--depth auto weighs blocks against widths"),
        ({"depth": 1, "ratio": 0.2, "method": "paper"}, r"--depth is used by --method calibrated, self, not by paper"),
        ({"depth": 1, "layers": {0: LayerOverride(0.5)}}, r"--depth renumbers the layers that a recipe names"),
    ],
)
def test_what_cannot_be_had_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FoldConfig("m", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, r"--depth 3 cannot be met: .* at most 2 of these 5 do"),
        ({"depth": 2, "ratio": 0.1}, r"--ratio 0.1 cannot be met: the smallest that can .* of the model"),
    ],
)
def test_what_the_model_has_not_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    model = idle_block(tmp_path / "m")
    with pytest.raises(UsageError, match=message):
        plan_from_config(FoldConfig(str(model), **options))
    with pytest.raises(UsageError, match=message):
        folded(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_blocks_of_different_widths_stay(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", num_hidden_layers=LAYERS)
    uneven = fold(model, output=tmp_path / "uneven", layers={1: LayerOverride(0.5)}).output
    with pytest.raises(UsageError, match="--depth takes out blocks that are alike, and those of this model differ"):
        folded(uneven, tmp_path / "out", depth=1)
    same = fold(model, output=tmp_path / "same", mlp_ratio=0.25, attention_ratio=0.5).output
    assert len(folded(same, tmp_path / "shallow", depth=1).plan["layers"]) == LAYERS - 1


@pytest.mark.parametrize(
    ("depth", "owner", "name"),
    [
        *(
            (depth, *place)
            for depth in (1, "auto")
            for place in ((Blocks, "repairs"), (Depth, "save"), (Journal, "append"))
        ),
        ("auto", depth_module, "best_blocks"),
    ],
)
def test_a_run_that_is_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int | str, owner: Any, name: str
) -> None:
    model, out = idle_block(tmp_path / "m"), tmp_path / "out"
    options = {"ratio": 0.3, "ratio_of": "decoder", "depth": depth}
    alone = folded(model, tmp_path / "alone", **options)

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            folded(model, out, **options)
    assert not out.exists()
    monkeypatch.setattr(Streams, "begin", _not_again)
    report = folded(model, out, **options)
    assert file_hashes(report.output) == file_hashes(alone.output)


def _not_again(*_: Any) -> None:
    pytest.fail("losses of blocks are measured again")


def test_other_families_keep_their_blocks(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", "Gemma2", num_hidden_layers=LAYERS)
    with pytest.raises(
        UsageError, match=r"--depth is for llama, mistral, qwen2, qwen3 alone, and the model is of type"
    ):
        folded(model, tmp_path / "out", ratio=0.3, depth=1)


def test_a_recipe_may_say_off(tmp_path: Path) -> None:
    (recipe := tmp_path / "r.yaml").write_text("depth: off\nratio: 0.2\nmodel: demo\n")
    (config,) = read_configs({"recipe": str(recipe)})
    assert config.depth == "off"


def test_plans_say_what_will_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = idle_block(tmp_path / "m")
    for depth, words in (
        ("1", "1 of 5 go as a whole: which, is measured before folding"),
        ("auto", "as many of 5 as lose least, if any: measured before folding"),
    ):
        assert main(["plan", "--model", str(model), "--ratio", "0.3", "--depth", depth]) == 0
        assert words in " ".join(capsys.readouterr().out.split())
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / CONFIG).write_bytes((model / CONFIG).read_bytes())
    full, of_config = (plan_from_config(FoldConfig(str(m), ratio=0.4, depth=1)).to_dict() for m in (model, bare))
    assert full == of_config


@pytest.mark.parametrize(
    "options", [{"depth": 1}, {"depth": 1, "ratio": 0.4}, {"depth": "auto", "ratio": 0.4}], ids=str
)
def test_the_plan_names_the_stages_of_the_run_and_what_they_hold(tmp_path: Path, options: dict[str, Any]) -> None:
    model = idle_block(tmp_path / "m")
    plan = plan_from_config(FoldConfig(str(model), fidelity_tokens=0, **ON_TOKENS, **options))
    expected = estimate(plan)
    planned = {name for name, seconds in expected.stages.items() if seconds > 0}
    report = folded(model, tmp_path / "out", **options)
    assert {"sample", "depth"} <= planned & report.seconds.keys()
    assert ("widths" in planned) == ("importance" in planned) == ("ratio" in options)
    assert planned <= report.seconds.keys()
    closed = {**ON_TOKENS, "refine": 0}  # nothing is followed, as where no layer is narrowed
    shallow = plan_from_config(FoldConfig(str(model), fidelity_tokens=0, mlp_ratio=0.25, **closed))
    assert expected.disk_bytes - plan.bytes_after > disk_needed(shallow) - shallow.bytes_after
