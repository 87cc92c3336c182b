"""Committed pages say what the data beside them says."""

import shutil
import sys
from pathlib import Path

import pytest
from support import ROOT


def test_the_page_of_scale_is_made_of_its_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    monkeypatch.delitem(sys.modules, "scale", raising=False)
    import scale

    results = ROOT / "eval" / "results"
    shutil.copytree(results / "scale", tmp_path / "scale")
    monkeypatch.setattr(scale, "RESULTS", tmp_path / "scale")
    scale.page()
    assert (tmp_path / "scale.md").read_text() == (results / "scale.md").read_text()
    assert (tmp_path / "scale" / "depth.svg").read_text() == (results / "scale" / "depth.svg").read_text()


def test_the_page_of_vision_is_made_of_its_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))
    import vision_page

    results = ROOT / "eval" / "results"
    shutil.copytree(results / "vision", tmp_path / "vision")
    charts = {path.name: path.read_text() for path in (tmp_path / "vision").glob("*.svg")}
    for name in charts:
        (tmp_path / "vision" / name).unlink()
    vision_page.write_page(tmp_path)
    assert (tmp_path / "vision.md").read_text() == (results / "vision.md").read_text()
    assert {path.name: path.read_text() for path in (tmp_path / "vision").glob("*.svg")} == charts
