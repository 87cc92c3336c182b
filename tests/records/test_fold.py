"""report.json holds what is needed to recompute every number that was printed, and nothing of this machine's paths."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import fold, parameters, tiny_model, weight_files

import llmfold


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    space = tmp_path_factory.mktemp("report")
    source = tiny_model(space / "source", num_hidden_layers=3)
    fold(source, mlp_ratio=0.25, attention_ratio=0.5, seed=5, cluster="hartigan", output=space / "out")
    return source, space / "out"


@pytest.fixture(scope="module")
def report(folded: tuple[Path, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folded[1] / "report.json").read_text())
    return loaded


def test_it_names_every_option(report: dict[str, Any]) -> None:
    fields = set(llmfold.FoldConfig.__dataclass_fields__)
    assert fields <= report["config"].keys()
    assert (report["config"]["seed"], report["config"]["cluster"], report["config"]["align"]) == (5, "hartigan", "none")


def test_it_names_the_versions(report: dict[str, Any]) -> None:
    import torch
    import transformers

    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["transformers"] == transformers.__version__
    assert report["versions"]["llmfold"] == llmfold.__version__
    assert "not installed" not in report["versions"].values()


def test_parameters_agree_with_the_files(folded: tuple[Path, Path], report: dict[str, Any]) -> None:
    source, out = folded
    assert report["plan"]["parameters"] == {"before": parameters(source), "after": parameters(out)}
    assert report["plan"]["ratio"] == pytest.approx(1 - parameters(out) / parameters(source))


def test_bytes_agree_with_the_files(folded: tuple[Path, Path], report: dict[str, Any]) -> None:
    for when, folder in zip(("before", "after"), folded, strict=True):
        (path,) = weight_files(folder)
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert report["plan"]["bytes"][when] == path.stat().st_size - header


def test_widths_and_clusters_of_every_layer(folded: tuple[Path, Path], report: dict[str, Any]) -> None:
    config = json.loads((folded[1] / "config.json").read_text())
    assert len(report["layers"]) == len(report["plan"]["layers"]) == 3
    for widths, record in zip(report["plan"]["layers"], report["layers"], strict=True):
        assert widths["after"]["intermediate"] == config["intermediate_size"]
        for part, key in (("mlp", "intermediate"), ("attention", "kv_heads")):
            sizes = {int(size): count for size, count in record[part]["cluster_sizes"].items()}
            assert sum(sizes.values()) == record[part]["after"] == widths["after"][key]
            assert sum(size * count for size, count in sizes.items()) == record[part]["before"]
            assert record[part]["before"] == widths["before"][key]
        assert record["mlp"]["inertia"] >= record["mlp"]["inertia_bound"] > 0


def test_time_and_memory(report: dict[str, Any]) -> None:
    assert {"read", "cluster", "merge", "write", "check"} <= report["seconds"].keys()
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    assert 50e6 < report["peak_memory_bytes"] < 5e9
    assert report["machine"]["threads"] == 1


def test_no_path_of_this_machine_is_published(folded: tuple[Path, Path]) -> None:
    source, out = folded
    private = {str(source.parent), os.path.expanduser("~"), os.getcwd(), os.uname().nodename}
    for path in out.rglob("*"):
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert not [word for word in private if len(word) > 3 and word in text], path.name


def test_the_source_is_called_by_its_name(report: dict[str, Any]) -> None:
    assert report["source"] == {"name": "source", "revision": None}
    assert report["config"]["model"] == "source"
    assert report["config"]["output"] == report["output"] == "out"


def test_a_resumed_run_says_so(tmp_path: Path, folded: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from llmfold.pipeline import run as run_module

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "verify", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fold(folded[0], ratio=0.2, output=tmp_path / "out")
    report = fold(folded[0], ratio=0.2, output=tmp_path / "out")
    assert report.resumed_layers == 3
    assert [layer["mlp"]["before"] for layer in report.layers] == [48, 48, 48]
