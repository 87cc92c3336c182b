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
