from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from llmfold import FoldConfig, LayerOverride, UsageError
from llmfold.recipe import load_recipe, parse_layers

Write = Callable[[str], Path]


@pytest.fixture
def recipe(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_names_are_those_of_the_options(recipe: Write) -> None:
    path = recipe("model: demo\nratio: 0.2\nratio-of: decoder\nmultiple_of: 16\nmax-shard-size: 1GB\n")
    assert load_recipe(path) == {
        "model": "demo",
        "ratio": 0.2,
        "ratio_of": "decoder",
        "multiple_of": 16,
        "max_shard_size": "1GB",
    }


def test_layers_by_index_and_range(recipe: Write) -> None:
    layers = load_recipe(recipe("layers: {5-6: {mlp: 0.5}, 9: {attention: 0.25, mlp: 0}, '12 - 12': {mlp: 0.1}}"))[
        "layers"
    ]
    assert layers == {
        5: LayerOverride(mlp=0.5),
        6: LayerOverride(mlp=0.5),
        9: LayerOverride(mlp=0, attention=0.25),
        12: LayerOverride(mlp=0.1),
    }


def test_the_recipe_of_the_reference_names_21_layers() -> None:
    path = resources.files("llmfold").joinpath("recipes/llama-7b-paper.yaml")
    options = load_recipe(Path(str(path)))
    layers = options["layers"]
    assert len(layers) == 21
    assert {i for i, o in layers.items() if o == LayerOverride(mlp=0.5)} == set(range(5, 11))
    assert {i for i, o in layers.items() if o == LayerOverride(mlp=0.4)} == set(range(13, 28))
    FoldConfig(model="m", **options)


BAD = {
    "unknown key": ("ratoi: 0.2", "unknown key 'ratoi'"),
    "unknown layer key": ("layers: {1: {mpl: 0.5}}", "unknown key 'mpl'"),
    "overlapping ranges": ("layers: {5-10: {mlp: 0.5}, 10-12: {mlp: 0.4}}", "layer 10 is named by two"),
    "overlapping spellings": ("layers: {5: {mlp: 0.5}, '5-5': {mlp: 0.4}}", "layer 5 is named by two"),
    "repeated option": ("ratio: 0.1\nratio: 0.2", "'ratio' stands twice"),
    "repeated layer": ("layers: {1: {mlp: 0.1}, 1: {mlp: 0.2}}", "'1' stands twice"),
    "two spellings": ("mlp-ratio: 0.1\nmlp_ratio: 0.2", "written with - and with _"),
    "backwards range": ("layers: {10-5: {mlp: 0.5}}", "ends before it begins"),
    "not a range": ("layers: {early: {mlp: 0.5}}", "neither a layer index nor a range"),
    "negative layer": ("layers: {-1: {mlp: 0.5}}", "neither a layer index nor a range"),
    "absurd range": ("layers: {0-99999999999: {mlp: 0.5}}", "no model has the layer 99999999999"),
    "fraction of one": ("layers: {1: {mlp: 1.0}}", "must lie in [0, 1)"),
    "fraction in words": ("layers: {1: {mlp: half}}", "must lie in [0, 1)"),
    "not a mapping": ("layers: {1: 0.5}", "must be a mapping"),
    "empty override": ("layers: {1: {}}", "must be a mapping"),
    "layers as a list": ("layers: [0.5]", "layers must map"),
    "layers left empty": ("layers:", "layers must map"),
    "a list": ("- ratio", "mapping of option names"),
    "nothing": ("", "mapping of option names"),
    "bad YAML": ("layers: {1: {mlp: 0.5}", "not valid YAML"),
    "a tab": ("ratio:\t\n\t- 1", "not valid YAML"),
    "a Python object": ("ratio: !!python/object/apply:os.getcwd []", "not valid YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_refused_in_a_sentence_that_names_the_file(recipe: Write, case: str) -> None:
    text, words = BAD[case]
    path = recipe(text)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "binary"):
        with pytest.raises(UsageError, match="cannot be read"):
            load_recipe(path)


def test_layers_from_python() -> None:
    assert parse_layers({3: {"mlp": 0.5}, "0-1": {"attention": 0.5}}) == {
        0: LayerOverride(attention=0.5),
        1: LayerOverride(attention=0.5),
        3: LayerOverride(mlp=0.5),
    }
