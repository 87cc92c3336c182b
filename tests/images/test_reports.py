"""Report, card and tables of image models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from images.networks import image_model, saved
from llmfold.hub.push import check_finished
from llmfold.report import card

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folded(llmfold: Cli, tmp_path: Path) -> Path:
    """A folded ResNet whose source has a card."""
    folder, out = saved(tmp_path / "net", image_model("basic")), tmp_path / "out"
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert llmfold("--model", folder, "--ratio", 0.3, "--method", "paper", "--output", out)[0] == 0
    return out


def test_the_card_says_how_the_model_loads_and_what_it_is(folded: Path) -> None:
    text = (folded / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.license, data.library_name) == ("image-classification", "mit", "transformers")
    assert 'ResNetForImageClassification.from_pretrained("path/to/this/folder"' in text
    assert "`hidden_sizes` | 8, 16 → 6, 13" in text
    assert "llmfold --model net --ratio 0.3 --method paper" in text
    assert "No data: the weights alone." in text


def test_an_output_can_be_pushed_and_its_card_loads_it_from_the_hub(folded: Path) -> None:
    record = check_finished(folded)
    card.address(folded, record, "someone/small")
    assert 'from_pretrained("someone/small"' in (folded / "README.md").read_text()


def test_the_page_has_channels_in_place_of_layers(folded: Path) -> None:
    page = (folded / "report.html").read_text()
    report = json.loads((folded / "report.json").read_text())
    for each in report["plan"]["couplings"]:
        assert each["name"] in page
    assert "8 → 6" in page
    assert "Kept: classifier.1: it is an output of the module" in page
