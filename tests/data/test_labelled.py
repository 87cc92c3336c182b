"""Images with classes are read from folders and archives; what is none is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images.data import classes, pictures

from llmfold import UsageError
from llmfold.data.labelled import read_images


def folder(place: Path, names: str = "cab", count: int = 12) -> Path:
    """Pictures in subfolders by their classes."""
    image = pytest.importorskip("PIL.Image")
    for number, picture in enumerate(pictures(count)):
        path = place / names[number % len(names)] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(picture).save(path)
    return place


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y")])
def test_an_archive(names: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **{names[0]: pictures(6), names[1]: classes(6).astype(np.uint8)})
    found = read_images(str(path))
    assert (found.name, found.count, found.names) == ("set.npz", 6, None)
    assert found.labels is not None
    assert np.array_equal(found.labels, classes(6))
    for _ in range(2):
        assert np.array_equal(np.stack(list(found.read())), pictures(6))
    few = read_images(str(path), limit=4)
    assert (few.count, len(list(few.read()))) == (4, 4)
    assert few.sha256 != found.sha256


def test_the_digest_is_of_pixels_and_labels(tmp_path: Path) -> None:
    digests = set()
    for change in ("", "pixel", "label"):
        x, y = pictures(3), classes(3)
        x[0, 0, 0, 0] += change == "pixel"
        y[0] += change == "label"
        np.savez(tmp_path / "set.npz", images=x, labels=y)
        digests.add(read_images(str(tmp_path / "set.npz")).sha256)
    assert len(digests) == 3


def test_a_folder_of_subfolders(tmp_path: Path) -> None:
    found = read_images(str(folder(tmp_path / "set")))
    assert found.names == ("a", "b", "c")
    assert found.labels is not None
    by_class = [number for letter in "abc" for number in range(12) if "cab"[number % 3] == letter]
    assert np.array_equal(np.stack(list(found.read())), pictures(12)[by_class])
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_part_of_a_folder_has_all_of_its_classes(tmp_path: Path) -> None:
    found = read_images(str(folder(tmp_path / "set")), limit=5)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    by_class = [number for letter in "abc" for number in range(12) if "cab"[number % 3] == letter]
    wanted = pictures(12)[[by_class[index] for index in (0, 2, 4, 7, 9)]]
    assert np.array_equal(np.stack(list(found.read())), wanted)
    assert read_images(str(tmp_path / "set"), limit=100).count == 12


def test_a_folder_with_a_table(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number, picture in enumerate(pictures(3)):
        image.fromarray(picture).convert("L").save(tmp_path / f"{number}.png")
    plain = read_images(str(tmp_path))
    assert plain.labels is None
    (tmp_path / "metadata.csv").write_text("file_name,kind\n0.png,dog\n1.png,cat\n2.png,dog\n")
    found = read_images(str(tmp_path), column="kind")
    assert found.labels is not None
    assert (found.names, found.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert {picture.shape for picture in found.read()} == {(16, 16, 3)}
    with pytest.raises(UsageError, match=r"no column 'sort' but .*kind"):
        read_images(str(tmp_path), column="sort")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": pictures(2)}, "no array called images"),
        ({"images": pictures(2).astype(np.float32)}, "dtype float32"),
        ({"images": pictures(2)[..., :1]}, r"shape \(2, 16, 16, 1\)"),
        ({"images": pictures(2), "labels": np.arange(3)}, r"labels of shape \(3,\)"),
        ({"images": pictures(2), "labels": np.array([0.5, 1])}, "dtype float64"),
        ({"images": pictures(2), "labels": np.array([0, -1])}, "without a class"),
        ({"images": pictures(2)[:0]}, "holds no images"),
        ({"images": np.array([{}, {}], dtype=object)}, "cannot be read as images"),
    ],
)
def test_archives_that_are_none(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UsageError, match=words):
        read_images(str(tmp_path / "set.npz"))


def test_files_and_folders_that_hold_no_images(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "text.txt").write_text("a")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    broken = folder(tmp_path / "broken", count=2)
    (broken / "c" / "00.png").write_bytes(b"\x89PNG")
    for name, words in {
        "text.txt": "no .npz",
        "torn.npz": "cannot be read",
        "broken": "broken",
        "empty": "empty",
    }.items():
        with pytest.raises(UsageError, match=words):
            read_images(str(tmp_path / name))
