"""The model card: metadata that the hub accepts, and a text that says what was done, to what, and how well."""

import dataclasses
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.loopback import Hub, metadata_errors
from huggingface_hub import ModelCard
from huggingface_hub.utils import get_session
from support import ROOT, edit_json, file_hashes, fold

from llmfold import FoldReport
from llmfold.evaluation.fidelity import POOR
from llmfold.records.saved import load_record
from llmfold.report import card

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def scored(perplexity: float, **acc: tuple[float, float | None]) -> dict[str, Any]:
    """What an evaluation says of one model."""
    text = {"nll": 1.0, "tokens": 15_300, "windows": 60, "protocol": "wiki.txt, 60 windows of 256 tokens"}
    tasks = {
        name: {"task": name, "metrics": {"acc": found}, "documents": 1000, "shots": 0, "version": "2", "data": "hub"}
        for name, found in acc.items()
    }
    return {"name": "out", "perplexity": {"value": perplexity, **text}, "tasks": tasks}


EVALUATION: dict[str, Any] = {
    "model": scored(31.731, boolq=(0.6, 0.01), piqa=(0.5, None)),
    "dense": scored(28.234, boolq=(0.7, 0.02)),
    "fidelity": {"kl": 0.0861, "top1": 0.788, "tokens": 8192, "sequences": 32},
    "fidelity_protocol": "KL and agreement on 8,192 sampled tokens",
    "speed": {
        "dense": {"prefill": 100.0, "decode": 10.0, "peak_memory_bytes": 400_000_000, "disk_bytes": 6_900_000},
        "model": {"prefill": 120.0, "decode": 10.04, "peak_memory_bytes": 300_000_000, "disk_bytes": 5_500_000},
        "prefill_ratio": 1.2,
        "decode_ratio": 1.004,
        "verdict": "no gain in decode",
        "protocol": "batch 1",
        "dtype": "float32 as stored",
    },
    "failures": [],
    "command": None,
    "versions": {"lm-eval": "0.4"},
    "machine": "a machine",
}


@pytest.fixture
def report(session_output: Path) -> FoldReport:
    """The report of a real fold, of a local folder; each test has its own."""
    return load_record(session_output)


def from_hub(report: FoldReport) -> FoldReport:
    """The same as if the base had come from the hub."""
    return dataclasses.replace(report, source={"name": "huggyllama/llama-7b", "revision": COMMIT})


def read(text: str) -> dict[str, Any]:
    """The metadata, as the hub's own client reads it."""
    found: dict[str, Any] = ModelCard(text).data.to_dict()
    return found


def test_every_output_has_its_own_card(session_output: Path, report: FoldReport) -> None:
    text = (session_output / "README.md").read_text()
    assert text == card.render(report)
    assert "The source's own card" not in text
    assert not list(session_output.glob(".*"))


def test_licence_and_languages_are_the_base_models(report: FoldReport) -> None:
    metadata = read(card.render(report))
    assert (metadata["license"], metadata["language"]) == ("mit", ["en", "no"])
    assert "datasets" not in metadata
    without = dataclasses.replace(report, base_card={})
    assert not {"license", "language"} & read(card.render(without)).keys()
    assert "No licence was found with the base model" in card.render(without)


def test_a_base_of_the_hub_is_linked_and_a_local_folder_is_not(report: FoldReport) -> None:
    metadata = read(card.render(from_hub(report)))
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("huggyllama/llama-7b", "finetune")
    assert "(https://huggingface.co/huggyllama/llama-7b) (revision `0123456789ab`)" in card.render(from_hub(report))
    local = read(card.render(report))
    assert not {"base_model", "base_model_relation"} & local.keys()
    assert "`tiny`" in card.render(report)


@pytest.mark.parametrize("method", ["paper", "magnitude"])
def test_metadata_passes(report: FoldReport, hub: Hub, method: str) -> None:
    """By the client's own reader and writer, and by the hub's endpoint."""
    made = dataclasses.replace(from_hub(report), config={**report.config, "method": method})
    text = card.render(made)
    assert metadata_errors(text) == []
    answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json={"repoType": "model", "content": text})
    assert (answer.status_code, answer.json()["errors"]) == (200, [])
    assert str(ModelCard(text)) == text
    metadata = read(text)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("transformers", "text-generation")
    assert metadata["tags"] == ["llmfold", "compression", "model-folding" if method == "paper" else "pruning"]


def test_what_was_done(report: FoldReport) -> None:
    text = card.render(report)
    before, after = report.plan["layers"][0]["before"], report.plan["layers"][0]["after"]
    assert f"| 0–1 | {before['intermediate']} → {after['intermediate']} |" in text
    assert f"{report.parameters_before:,} → {report.parameters_after:,} parameters" in text
    for line in (
        "| method | `paper` |",
        "| seed | 0 |",
        "| clusters | ward |",
        "| ratio asked for | 0.2 of the model |",
    ):
        assert line in text
    assert all(version in text for version in report.versions.values())


def test_what_became_of_every_layer(report: FoldReport) -> None:
    """The record of the published method counts clusters; of all others, errors before and after repair."""
    part = report.layers[0]["mlp"]
    merged = sum(count for size, count in part["cluster_sizes"].items() if int(size) > 1)
    ratio = part["inertia"] / part["inertia_bound"]
    width = f"{part['before']} → {part['after']}"
    largest = max(map(int, part["cluster_sizes"]))
    assert f"| 0 | MLP | {width} | {merged} | {largest} | {ratio:.2f} |" in card.render(report)
    record = {"before": 48, "after": 40, "ridge": 0.1, "error_before_repair": None, "error_after_repair": 0.5}
    refined = {**record, "refined_errors": [0.4, 0.2], "error_after_repair": 0.25}
    layers = [{"mlp": refined, "attention": {**record, "error_before_repair": 1.0}}]
    text = card.render(dataclasses.replace(report, layers=layers, config={**report.config, "refine": 30}))
    assert "| 0 | MLP | 48 → 40 | 0.1 | – | 0.250 |" in text
    assert "| 0 | heads | 48 → 40 | 0.1 | 1.000 | 0.500 |" in text
    assert "refined by 30 gradient steps on one layer after another" in text
    assert "merging clusters" not in text


def test_the_command_makes_the_same_fold(
    llmfold: Callable[..., tuple[int, str, str]], session_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"mlp_ratio": 0.25, "seed": 3, "cluster": "hartigan", "align": "gauge", "dtype": "bfloat16"}
    made = fold(session_model, **options, output=tmp_path / "out")
    command = (made.output / "README.md").read_text().split("The command:\n\n```bash\n")[1].split("\n```")[0]
    monkeypatch.chdir(session_model.parent)  # where its public name is a path to it
    assert llmfold(*shlex.split(command)[1:], "--output", tmp_path / "again", "--fidelity-tokens", 0, "--quiet") == (
        0,
        "",
        "",
    )
    assert file_hashes(tmp_path / "again") == file_hashes(made.output)


def loaded(text: str, folder: Path) -> str:
    """Class of the model that the card's own lines load; the tiny model has no tokenizer."""
    code = text.split("```python\n")[1].split("```")[0]
    assert code.count('"me/small"') == 2
    lines = [line for line in code.replace("me/small", str(folder)).splitlines() if not line.startswith("tokenizer")]
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    return type(scope["model"]).__name__


def test_the_lines_of_usage_run(report: FoldReport, session_output: Path) -> None:
    text = card.render(report, repo_id="me/small")
    assert "trust_remote_code" not in text
    assert loaded(text, session_output) == report.plan["written_as"]


def test_widths_of_their_own_are_listed_and_need_trust(session_model: Path, tmp_path: Path) -> None:
    made = fold(session_model, layers={0: {"mlp": 0.5}}, output=tmp_path / "out")
    text = card.render(load_record(made.output), repo_id="me/small")
    assert "| 0 | 48 → 24 | 4 | 2 |" in text
    assert "| 1 | 48 | 4 | 2 |" in text
    assert "| ratio asked for | by layer |" in text
    assert "| widths | by layer, from a recipe |" in text
    assert 'dtype="auto", trust_remote_code=True)' in text
    assert loaded(text, made.output) == "FoldedLlamaForCausalLM"


def test_a_fold_of_a_model_of_the_hub(session_model: Path, tmp_path: Path) -> None:
    """From a cache as the hub's client lays it out: every file a link to a blob."""
    snapshot, blobs = tmp_path / "models--me--tiny" / "snapshots" / COMMIT, tmp_path / "models--me--tiny" / "blobs"
    shutil.copytree(session_model, blobs)
    (blobs / "README.md").write_text("---\nlicense: mit\n---\n# Not this")
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    text = (fold(snapshot, ratio=0.2, output=tmp_path / "out").output / "README.md").read_text()
    metadata = read(text)
    assert (metadata["base_model"], metadata["license"]) == ("me/tiny", "mit")
    assert f"(revision `{COMMIT[:12]}`)" in text
    assert "Not this" not in text
    assert str(tmp_path) not in text


DATA: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "none": ({"data": "none"}, None, "None: nothing but the base checkpoint was read."),
    "self": (
        {"data": "sampled from the model itself", "sequences": 64, "sequence_length": 256},
        None,
        "No outside text. 64 sequences of 256 tokens were sampled from the base model itself",
    ),
    "outside": (
        {"data": "outside text: wiki.txt", "sequences": 64, "sequence_length": 256},
        "wiki.txt",
        "64 sequences of 256 tokens of `wiki.txt` were read to choose and repair units. **This model is not data-free",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_data_is_owned_up_to(report: FoldReport, case: str) -> None:
    facts, name, words = DATA[case]
    text = card.render(dataclasses.replace(report, data=facts, config={**report.config, "data": name}))
    assert words in text
    assert ("without outside data" in text) == (case != "outside")
    assert ("with outside text for calibration" in text) == (case == "outside")


def test_quality_is_told_with_its_protocol(report: FoldReport) -> None:
    text = card.render(dataclasses.replace(report, quality=EVALUATION))
    for line in (
        "| KL to the dense model, nats per token | 0 | 0.0861 |",
        "| top-1 agreement with the dense model | 100 % | 78.8 % |",
        "| perplexity | 28.2340 | 31.7310 |",
        "| boolq, acc | 70.00 ± 2.00 | 60.00 ± 1.00 |",
        "| piqa, acc | – | 50.00 |",
        "| prefill, tokens per second, float32 as stored | 100 | 120 |",
        "| weights on disk | 6.9 MB | 5.5 MB |",
        "- Speed: batch 1. no gain in decode.",
        "- Fidelity: KL and agreement on 8,192 sampled tokens.",
        "- Perplexity: wiki.txt, 60 windows of 256 tokens.",
        "- boolq: 1,000 documents, 0-shot, task version 2, hub.",
    ):
        assert line in text, line
    assert "Not measured" not in text
    assert "Warning" not in text


def test_quality_that_was_not_measured_is_not_invented(report: FoldReport) -> None:
    text = card.render(dataclasses.replace(report, quality={}))
    assert "Not measured in this run" in text
    assert "llmfold eval --model path/to/this/folder --against BASE" in text
    assert "--against huggyllama/llama-7b" in card.render(from_hub(report))


@pytest.mark.parametrize(("top1", "poor"), [(POOR, False), (POOR - 1e-6, True), (float("nan"), True)])
def test_a_poor_model_says_so_and_by_what_rule(report: FoldReport, top1: float, poor: bool) -> None:
    quality = {**EVALUATION, "fidelity": {**EVALUATION["fidelity"], "top1": top1}}
    text = card.render(dataclasses.replace(report, quality=quality))
    assert ("**Warning: this model is far from the one it was made from.**" in text) == poor
    assert ("less than 50 % of the time" in text) == poor


def test_names_cannot_break_the_page(report: FoldReport) -> None:
    source = {"name": "a`|b\n# c", "revision": None}
    text = card.render(dataclasses.replace(report, source=source, config={**report.config, "cluster": "x|y"}))
    assert "\n# c" not in text
    assert "| clusters | x\\|y |" in text


def test_same_fold_same_card_wherever_it_is_written(session_model: Path, tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {"verify": "off"})):
        fold(session_model, ratio=0.2, output=tmp_path / name, **options)
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")


def test_reports_of_other_versions_are_read(session_output: Path, report: FoldReport, tmp_path: Path) -> None:
    shutil.copy(session_output / "report.json", tmp_path)
    edit_json(tmp_path / "report.json", tomorrow=1, base_card=None)
    assert card.render(load_record(tmp_path)) == card.render(dataclasses.replace(report, base_card={}))


def test_the_demos_card_is_what_its_report_renders_to() -> None:
    folder = ROOT / "docs" / "demo"
    assert (folder / "README.md").read_text(encoding="utf-8") == card.render(load_record(folder))
    assert metadata_errors((folder / "README.md").read_text(encoding="utf-8")) == []
