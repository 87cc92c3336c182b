import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support import fold, tiny_model

import llmfold
from llmfold.report.files import save_report
from llmfold.report.html import page

VOID = {"meta", "link", "br", "img", "path", "circle", "rect"}
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Balanced(HTMLParser):
    """Follows open tags, and gathers whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="session", params=["paper", "self"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("report")
    model = tiny_model(folder / "tiny <&> model")
    options = {"num_samples": 16, "sequence_length": 32} if request.param == "self" else {}
    output = llmfold.fold(
        model, method=request.param, ratio=0.2, output=folder / "out", fidelity_tokens=256, **options
    ).output
    assert (output / "report.html").read_text(encoding="utf-8") == page(
        json.loads((output / "report.json").read_text())
    )
    content: dict[str, Any] = json.loads((output / "report.json").read_text())
    return content


def test_is_one_well_formed_page_that_fetches_nothing(report: dict[str, Any]) -> None:
    parser = Balanced()
    parser.feed(page(report))
    parser.close()
    assert parser.open == []
    assert parser.fetched == []
    assert "<script" not in page(report)
    assert "url(" not in page(report)
    assert "&lt;&amp;&gt; model" in page(report)


def test_tells_what_the_report_holds(report: dict[str, Any]) -> None:
    text = re.sub(r"<[^>]+>", " ", page(report))
    assert f"{report['quality']['fidelity']['kl']:.4f}" in text
    assert f"{report['quality']['fidelity']['top1']:.1%}" in text
    for layer in report["layers"]:
        assert f"{layer['mlp']['before']} → {layer['mlp']['after']}" in text
    assert f"--method {report['config']['method']}" in text or report["config"]["method"] == "self"
    assert report["versions"]["torch"] in text
    assert ("Clusters of MLP neurons by size" in text) == (report["config"]["method"] == "paper")


def test_without_quality_or_layers_it_is_still_a_page(session_model: Path, space: Path) -> None:
    done = fold(session_model, ratio=0, output=space / "same")
    parser = Balanced()
    parser.feed((done.output / "report.html").read_text())
    assert parser.open == []
    done.warnings.append("mind the <gap>")
    save_report(done, done.output)
    assert "mind the &lt;gap&gt;" in (done.output / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_opens_in_a_browser_without_a_word_on_its_console(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(report), encoding="utf-8")
    dom, said = browse(path, tmp_path)
    assert "Seconds by stage" in dom
    assert said == []
    loud = tmp_path / "loud.html"
    loud.write_text(page(report).replace("<h1>", '<img src="missing.png"><h1>', 1), encoding="utf-8")
    assert browse(loud, tmp_path)[1]


def browse(path: Path, scratch: Path) -> tuple[str, list[str]]:
    """The page's elements after loading, and what it wrote to the console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"]
    flags += [f"--user-data-dir={scratch / 'profile'}", "--window-size=390,800", "--dump-dom", path.as_uri()]
    done = subprocess.run([str(CHROMIUM), *flags], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
