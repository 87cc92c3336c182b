"""Several ratios in one command: every output as if it had been made alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import file_hashes, fold, tiny_model

import llmfold
from llmfold import UsageError
from llmfold.clustering import cluster, cluster_at
from llmfold.folding import layer as layer_module
from llmfold.pipeline.run import Run

RATIOS = (0.1, 0.3, 0.2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide = {"intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4}
    return tiny_model(tmp_path_factory.mktemp("sweep") / "model", num_hidden_layers=3, **wide)


def alone(source: Path, folder: Path, **options: Any) -> dict[float, dict[str, str]]:
    made = {}
    for ratio in RATIOS:
        fold(source, ratio=ratio, output=folder / f"{ratio}", **options)
        made[ratio] = file_hashes(folder / f"{ratio}")
    return made


@pytest.mark.parametrize(
    "options",
    [
        {"cluster": "ward", "attention_ratio": 0.125},
        {"cluster": "hartigan"},
        {"cluster": "kmeans", "align": "gauge", "repair": "variance", "attention_ratio": 0.125},
        {"method": "magnitude"},
        {"method": "self", "num_samples": 8, "sequence_length": 16, "refine": 1},
        {"method": "self", "num_samples": 16, "sequence_length": 16, "refine": 0, "allocation": "adaptive"},
    ],
    ids=lambda o: f"{o.get('method', 'paper')}-{o.get('cluster', o.get('allocation', ''))}",
)
def test_a_sweep_equals_separate_runs(tmp_path: Path, source: Path, options: dict[str, Any]) -> None:
    options = {"method": "paper", "ratio_of": "decoder", "fidelity_tokens": 0, **options}
    reports = llmfold.sweep(source, RATIOS, output=tmp_path / "sweep", **options)
    separate = alone(source, tmp_path, **options)
    for ratio, report in zip(RATIOS, reports, strict=True):
        folder = tmp_path / "sweep" / f"{source.name}-folded-{ratio:g}"
        assert report.output == folder
        assert report.config["ratio"] == ratio
        assert file_hashes(folder) == separate[ratio]


@pytest.mark.parametrize("method", ["paper", "magnitude"])
def test_a_ratio_of_nothing_leaves_the_others_to_be_folded(tmp_path: Path, source: Path, method: str) -> None:
    options: dict[str, Any] = {"method": method, "fidelity_tokens": 0}
    nothing, some = llmfold.sweep(source, [0.0, 0.3], output=tmp_path / "sweep", **options)
    for ratio, report in ((0.0, nothing), (0.3, some)):
        fold(source, ratio=ratio, output=tmp_path / f"{ratio}", **options)
        assert file_hashes(report.output) == file_hashes(tmp_path / f"{ratio}")


def test_each_layer_is_clustered_once(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(blocks: Any, ks: Any, **rest: Any) -> Any:
        calls.append(list(ks))
        return cluster_at(blocks, ks, **rest)

    monkeypatch.setattr(layer_module, "cluster_at", counted)
    llmfold.sweep(source, RATIOS, output=tmp_path / "sweep", method="paper", ratio_of="decoder", fidelity_tokens=0)
    assert len(calls) == 3
    assert all(len(ks) == len(RATIOS) for ks in calls)


def test_an_interrupted_sweep_keeps_what_is_finished(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, publish, published = tmp_path / "sweep", Run._publish, []

    def struck(self: Run, *rest: Any) -> Any:
        if len(published) == 1:
            raise KeyboardInterrupt
        published.append(publish(self, *rest))
        return published[-1]

    monkeypatch.setattr(Run, "_publish", struck)
    with pytest.raises(KeyboardInterrupt):
        llmfold.sweep(source, RATIOS, output=out, method="paper", fidelity_tokens=0)
    monkeypatch.undo()
    first = out / f"{source.name}-folded-0.1"
    before = first.stat().st_ino
    reports = llmfold.sweep(source, RATIOS, output=out, method="paper", fidelity_tokens=0)
    assert first.stat().st_ino == before
    assert [r.resumed_layers for r in reports] == [0, 3, 3]
    assert {r.output.name: file_hashes(r.output) for r in reports} == {
        f"{source.name}-folded-{ratio:g}": hashes for ratio, hashes in alone(source, tmp_path, method="paper").items()
    }


@pytest.mark.parametrize("method", ["paper", "weights"])
def test_a_finished_output_of_another_model_by_the_same_name_is_no_result(tmp_path: Path, method: str) -> None:
    models = [tiny_model(tmp_path / folder / "model", seed=seed) for seed, folder in enumerate("ab")]
    options: dict[str, Any] = {"output": tmp_path / "sweep", "method": method, "fidelity_tokens": 0}
    made = llmfold.sweep(models[0], (0.1, 0.2), **options)
    before = {report.output: file_hashes(report.output) for report in made}
    with pytest.raises(UsageError, match="exists"):
        llmfold.sweep(models[1], (0.1, 0.2), **options)
    assert {folder: file_hashes(folder) for folder in before} == before
    assert [report.output for report in llmfold.sweep(models[0], (0.1, 0.2), **options)] == list(before)


def test_a_ratio_that_stands_twice_is_refused(source: Path) -> None:
    with pytest.raises(UsageError, match=r"--ratio names 0.2 twice"):
        llmfold.sweep(source, (0.1, 0.2, 0.2), method="paper")


@pytest.mark.parametrize("method", ["ward", "kmeans", "hartigan"])
def test_clusters_at_several_k_are_those_of_each(method: Any) -> None:
    rows = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    ks = [30, 12, 40, 25]
    for k, found in zip(ks, cluster_at([rows], ks, method=method, seed=3), strict=True):
        expected = cluster([rows], k, method=method, seed=3)
        assert torch.equal(found.labels, expected.labels)
        assert (found.k, found.inertia, found.bound) == (k, expected.inertia, expected.bound)
