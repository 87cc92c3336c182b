"""What the pages say is so: links lead somewhere, commands are accepted, tables agree with what they are taken from."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from llmfold import FoldConfig, __version__, cli
from llmfold.options import options_of
from llmfold.recipe import load_recipe
from llmfold.registry import methods

PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\((?![a-z]+:|#)([^)\s#]+)(?:#[^)\s]*)?\)")
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Command lines of a page as words, without their comments."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def rows(text: str) -> list[list[str]]:
    """Cells of the rows of all tables."""
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize(("name", "limit"), [("README.md", 150), ("ARCHITECTURE.md", 120), ("CONTRIBUTING.md", 80)])
def test_pages_that_everybody_reads_are_short(name: str, limit: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= limit


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    lost = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if "llmfold" in words[:5] and words[0] in ("llmfold", "torchrun"):
            arguments = words[words.index("llmfold") + 1 :]
            parsed = cli.build_parser().parse_args(cli._with_command(arguments))
            assert parsed.command, words
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        else:
            script = words[1] if words[0] == "python" else words[0]
            assert words[0] == "pip" or (ROOT / script).is_file(), words


def test_the_readme_shows_commands_of_every_kind() -> None:
    shown = {(words[0], words[1]) for words in commands(ROOT / "README.md") if words[0] in ("llmfold", "make")}
    wanted = {("llmfold", "plan"), ("llmfold", "eval"), ("llmfold", "compare"), ("llmfold", "push"), ("make", "demo")}
    assert wanted <= shown


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    results = rows((ROOT / "eval" / "results" / "smollm2-real.md").read_text())
    text = (ROOT / "README.md").read_text()
    plain = text[: text.index("Every fold ends")].replace("*", "")
    ours = [row for row in rows(plain) if re.match(r"0\.\d{3}", row[-1])]
    assert len(ours) == 7
    for method, _, *figures in ours:
        name = re.match(r"`?([a-z-]+)", method)
        assert name
        found = [row for row in results if re.split(r"[,; ]", row[0])[0] == name[1]]
        pairs = [list(zip(row[1:4], figures, strict=True)) for row in found]
        assert any(all(cell.startswith(figure) for cell, figure in row) for row in pairs), (method, figures)


def test_the_layers_are_those_that_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    held = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    table = rows((ROOT / "ARCHITECTURE.md").read_text().split("## Layers")[1].split("\n## ")[0])[2:]
    assert [re.findall(r"`([a-z_]+)`", row[0]) for row in table] == [layer.split(" | ") for layer in held]


def test_lists_in_pages_are_made_from_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    monkeypatch.delitem(sys.modules, "tables", raising=False)
    import tables

    marks = {mark for page in PAGES for mark in re.findall(r"^<!-- (.+) -->$", page.read_text(), re.MULTILINE)}
    assert marks == set(tables.TABLES)
    options = {row[1].strip("`"): row for row in rows(tables.TABLES["fold options"]())}
    assert {field.name for field, _ in options_of(FoldConfig)} <= options.keys()
    assert options["refine"][-1].endswith("Only by `calibrated`, `self`.")
    assert options["bias"][:1] == ["`--no-bias`"]
    listed = [
        row[0].strip("`") for name in ("folding methods", "pruning methods") for row in rows(tables.TABLES[name]())
    ]
    assert [name for name in listed if name in methods()] == list(methods())


def test_the_recipe_shown_is_the_one_that_ships(tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(blocks(ROOT / "docs" / "recipes.md", "yaml")[0])
    shipped = load_recipe(ROOT / "llmfold" / "recipes" / "llama-7b-paper.yaml")
    assert shipped.items() >= load_recipe(path).items()


def test_every_page_is_in_the_contents() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES[1:] if f": {page.name}\n" not in text] == []


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2502.10216"


def test_the_picture_of_a_report_is_small() -> None:
    assert (ROOT / "docs" / "report.png").stat().st_size < 150_000
