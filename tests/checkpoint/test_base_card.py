"""What is carried over from a base card, which like all of a checkpoint may be anything."""

from pathlib import Path

import pytest

from llmfold.checkpoint.base_card import carried_over
from llmfold.demo import demo_folder


def card(folder: Path, metadata: str) -> Path:
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# A model\n", encoding="utf-8")
    return folder


def test_licence_and_languages(tmp_path: Path) -> None:
    text = (
        "license: other\nlicense_name: llama3\nlicense_link: LICENSE\nlanguage:\n- en\n- no\ntags: [x]\nnew_version: y"
    )
    assert carried_over(card(tmp_path, text)) == {
        "license": "other",
        "license_name": "llama3",
        "license_link": "LICENSE",
        "language": ["en", "no"],
    }


@pytest.mark.parametrize(("metadata", "language"), [("language: de", "de"), ("language: no", "no")])
def test_one_language(tmp_path: Path, metadata: str, language: str) -> None:
    assert carried_over(card(tmp_path, metadata)) == {"language": language}


@pytest.mark.parametrize(
    "metadata",
    [
        *(
            "",
            "x: 1",
            "license: 3",
            "license: {a: b}",
            "license: []",
            "license: ''",
            "language: [en, 3]",
            "language: true",
        ),
        *("license: [", "- a", "license: !!python/object/apply:os.getcwd []", "license_name: [a]"),
    ],
)
def test_what_is_absent_or_malformed_is_left_out(tmp_path: Path, metadata: str) -> None:
    assert carried_over(card(tmp_path, metadata)) == {}


def test_cards_that_cannot_be_read(tmp_path: Path) -> None:
    assert carried_over(tmp_path) == {}
    path = tmp_path / "README.md"
    path.write_bytes(b"---\nlicense: mit\xff\n---\n")
    assert carried_over(tmp_path) == {}
    path.write_text("---\nlicense: mit\n---\n" + "x" * (1 << 20))
    assert carried_over(tmp_path) == {}
    path.unlink()
    (tmp_path.parent / "private.md").write_text("---\nlicense: mit\n---\n")
    path.symlink_to(tmp_path.parent / "private.md")
    assert carried_over(tmp_path) == {}
    path.unlink()
    path.mkdir()
    assert carried_over(tmp_path) == {}


def test_the_demo_has_one() -> None:
    assert carried_over(demo_folder()) == {"license": "apache-2.0", "language": "en"}
