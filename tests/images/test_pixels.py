"""Pixels are those of the folder's own processor, and classes those of the config."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from images.data import classes, pictures, scaled
from llmfold import UsageError
from llmfold.data.labelled import LabelledImages, read_images
from llmfold.errors import CheckpointError
from llmfold.images import pixels as module
from llmfold.images.pixels import class_numbers, preprocessing

PREPROCESSOR = "preprocessor_config.json"


def labelled(names: tuple[str, ...] | None, numbers: list[int]) -> LabelledImages:
    return LabelledImages("set", len(numbers), "", np.array(numbers), names, lambda: iter(()))


def test_without_a_processor_pixels_are_scaled(tmp_path: Path) -> None:
    found = preprocessing(tmp_path)
    assert "0..1" in found.words
    assert torch.equal(found.pixels(list(pictures(3))), scaled(pictures(3)))
    images = LabelledImages("set", 2, "", None, None, lambda: iter([pictures(1)[0], pictures(1)[0, :8]]))
    with pytest.raises(UsageError, match=f"differ in size.*{PREPROCESSOR}"):
        list(found.batches(images, 2))


def test_batches_hold_all_images_in_order(tmp_path: Path) -> None:
    images = LabelledImages("set", 5, "", classes(5), None, lambda: iter(pictures(5)))
    parts = list(preprocessing(tmp_path).batches(images, 2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat(parts), scaled(pictures(5)))


def test_the_processor_of_the_folder_is_used(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    told = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "image_mean": [0.5, 0.4, 0.3]}
    (tmp_path / PREPROCESSOR).write_text(json.dumps({**told, "image_std": [0.2, 0.3, 0.4]}))
    (tmp_path / "config.json").write_text("{}")
    found = preprocessing(tmp_path)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    wanted = (scaled(pictures(3)) - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(found.pixels(list(pictures(3))), wanted, atol=1e-5)
    assert "ViTImageProcessor" in found.words


def test_a_processor_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"image_processor_type": "Nothing"}))
    with pytest.raises(CheckpointError, match="correct it"):
        preprocessing(tmp_path)


def test_code_of_a_processor_is_not_run(tmp_path: Path) -> None:
    (tmp_path / PREPROCESSOR).write_text(json.dumps({"auto_map": {"AutoImageProcessor": "code.Processor"}}))
    with pytest.raises(CheckpointError, match="code of its own"):
        preprocessing(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        @staticmethod
        def from_pretrained(*args: object, **options: object) -> None:
            raise ImportError("PIL")

    (tmp_path / PREPROCESSOR).write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    monkeypatch.setattr(module, "AutoImageProcessor", Absent)
    with pytest.raises(UsageError, match=r"pip install 'llmfold\[images\]'"):
        preprocessing(tmp_path)
    pytest.importorskip("datasets")  # looks for it once, when it is first imported
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'llmfold\[images\]'"):
        read_images(str(tmp_path))


def test_classes_by_name_by_order_and_by_number() -> None:
    config = PretrainedConfig(id2label={0: "dog", 1: "owl", 2: "cat"})
    numbers, words = class_numbers(labelled(("cat", "dog"), [0, 1, 1]), config)
    assert numbers is not None
    assert numbers.tolist() == [2, 0, 0]
    assert "by their names" in words
    numbers, words = class_numbers(labelled(("n1", "n2", "n3"), [2, 0]), config)
    assert numbers is not None
    assert numbers.tolist() == [2, 0]
    assert "in their order" in words
    numbers, _ = class_numbers(labelled(None, [2, 1]), config)
    assert numbers is not None
    assert numbers.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("names", "numbers", "words"),
    [
        (None, [3], "has class 3, and the model has 3"),
        (("cat", "fox"), [0, 1], "does not name 'fox'"),
        (("n1", "n2"), [0, 1], "has 2 classes .* and the model has 3"),
    ],
)
def test_classes_that_the_model_has_not(names: tuple[str, ...] | None, numbers: list[int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        class_numbers(labelled(names, numbers), PretrainedConfig(id2label={0: "dog", 1: "owl", 2: "cat"}))
