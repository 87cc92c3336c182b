from pathlib import Path
from typing import Any

import pytest

from llmfold import FoldConfig, LayerOverride, UsageError


def test_defaults_need_only_a_model_and_a_ratio() -> None:
    config = FoldConfig("m", ratio=0.2)
    assert (config.seed, config.dtype, config.device, config.verify) == (0, "auto", "auto", "full")
    assert config.shard_bytes == 5 * 10**9
    assert not config.overwrite
    assert not config.trust_remote_code


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("ratio", "mlp_ratio", "attention_ratio") for value in (-0.1, 1, 1.5, "0.2", True)),
        ("ratio", float("nan")),
        ("ratio", float("inf")),
        ("method", "magic"),
        ("cluster", "dbscan"),
        ("cluster", ["ward"]),
        ("align", "left"),
        ("repair", "tape"),
        ("ratio_of", "heads"),
        ("dtype", "int8"),
        ("verify", True),
        ("multiple_of", 0),
        ("multiple_of", 1.5),
        ("multiple_of", True),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.0),
        ("max_shard_size", 0),
        ("max_shard_size", "big"),
        ("max_shard_size", -5),
        ("model", 7),
        ("model", None),
        ("output", 5),
        ("revision", 1.0),
        ("device", 0),
        ("overwrite", "no"),
        ("trust_remote_code", "no"),
        ("trust_remote_code", 1),
    ],
)
def test_a_bad_value_names_its_option(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        FoldConfig(**{"model": "m", "ratio": 0.2, name: value})
    words = "size" if name == "max_shard_size" else "--" + name.replace("_", "-")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layers",
    [
        {-1: LayerOverride(mlp=0.5)},
        {"0": LayerOverride(mlp=0.5)},
        {True: LayerOverride(mlp=0.5)},
        {0: LayerOverride(mlp=1.0)},
        {0: LayerOverride(attention=-0.5)},
        {0: LayerOverride(mlp="half")},  # type: ignore[arg-type]
    ],
)
def test_bad_layer_overrides_are_refused(layers: Any) -> None:
    with pytest.raises(UsageError, match=r"^layers: "):
        FoldConfig("m", layers=layers)


def test_something_must_say_how_much_to_remove() -> None:
    with pytest.raises(UsageError, match="--ratio"):
        FoldConfig("m")
    for options in ({"ratio": 0}, {"mlp_ratio": 0.1}, {"attention_ratio": 0.5}, {"layers": {0: LayerOverride(0.5)}}):
        FoldConfig("m", **options)


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5GB", 5 * 10**9), ("2GiB", 2 * 2**30), ("500MB", 5 * 10**8), (123, 123), ("0.5 MB", 500_000)],
)
def test_shard_sizes(size: int | str, expected: int) -> None:
    assert FoldConfig("m", ratio=0.1, max_shard_size=size).shard_bytes == expected


def test_the_published_method_aligns_nothing_unless_told() -> None:
    assert FoldConfig("m", ratio=0.1, method="paper").alignment == "none"
    assert FoldConfig("m", ratio=0.1, method="paper", align="gauge").alignment == "gauge"


@pytest.mark.parametrize(
    ("model", "ratio", "expected"),
    [("org/name", 0.2, "name-folded-0.2"), ("demo", 0.25, "demo-folded-0.25"), ("./absent/m", None, "m-folded-custom")],
)
def test_the_output_has_a_name_by_default(model: str, ratio: float | None, expected: str) -> None:
    assert FoldConfig(model, ratio=ratio, mlp_ratio=0.1).output_path == Path(expected)


@pytest.mark.parametrize("spelling", ["{0}", "{0}/", "{0}/../m", "{0}/."])
def test_the_default_output_of_a_folder_has_its_name(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "m").mkdir()
    assert FoldConfig(spelling.format(tmp_path / "m"), ratio=0.5).output_path == Path("m-folded-0.5")


def test_paths_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert FoldConfig("~/m", ratio=0.5, output="~/out").output_path == tmp_path / "out"
    assert FoldConfig("~/m", ratio=0.5).output_path == Path("m-folded-0.5")
    assert FoldConfig("m", ratio=0.5, output="~nobody-here/out").output_path == Path("~nobody-here/out")


def test_the_options_that_decide_the_bytes_leave_out_those_that_do_not() -> None:
    one = FoldConfig("m", ratio=0.2, method="paper", output="a", overwrite=True, verify="off")
    other = FoldConfig("m", ratio=0.2, method="paper", output="b")
    assert one.work() == other.work()
    for change in ({"seed": 1}, {"cluster": "kmeans"}, {"dtype": "float16"}, {"layers": {1: LayerOverride(mlp=0.5)}}):
        assert FoldConfig("m", ratio=0.2, method="paper", **change).work() != other.work()
    assert (
        FoldConfig("m", ratio=0.2, method="paper", align="none").work()
        == FoldConfig("m", ratio=0.2, method="paper").work()
    )


@pytest.mark.parametrize("options", [{"cluster": "kmeans"}, {"align": "gauge"}, {"repair": "variance"}])
def test_options_of_the_published_method_are_refused_elsewhere(options: dict[str, Any]) -> None:
    FoldConfig("m", ratio=0.2, method="paper", **options)
    with pytest.raises(UsageError, match=f"--{next(iter(options))} is used by --method paper, not by self"):
        FoldConfig("m", ratio=0.2, method="self", **options)


def test_refinement_needs_tokens() -> None:
    FoldConfig("m", ratio=0.2, method="self", refine=2)
    with pytest.raises(UsageError, match="--refine is used by --method calibrated, self, not by weights"):
        FoldConfig("m", ratio=0.2, method="weights", refine=2)


@pytest.mark.parametrize(
    "options",
    [
        *({"method": m, n: v} for m in ("paper", "random", "magnitude") for n, v in (("effort", "best"),)),
        *(
            {"method": m, n: v}
            for m in ("paper", "weights", "random", "magnitude")
            for n, v in (("num_samples", 8), ("sequence_length", 8), ("temperature", 1.1), ("max_memory", "4GiB"))
        ),
        {"method": "calibrated", "data": "t.txt", "temperature": 1.1},
        {"method": "flap", "data": "t.txt", "max_memory": 10**9},
        {"method": "wanda-sp", "data": "self", "refine": 1},
        {"method": "self", "bias": False},
    ],
)
def test_an_option_that_changes_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^--[a-z-]+ is used [^.]+; leave it out$"):
        FoldConfig("m", ratio=0.2, **options)


def test_options_of_sampling_go_with_data_that_is_sampled() -> None:
    FoldConfig("m", ratio=0.2, method="wanda-sp", data="self", temperature=1.0, max_memory="4GiB", effort="quick")


@pytest.mark.parametrize(
    ("given", "tasks"),
    [(True, "wikitext2,folding"), (False, None), (["piqa", "boolq"], "piqa,boolq"), ("piqa", "piqa"), (None, None)],
)
def test_tasks_may_be_a_list_or_just_asked_for(given: Any, tasks: str | None) -> None:
    assert FoldConfig(model="m", ratio=0.2, eval=given).eval == tasks


def test_tasks_that_are_no_words_are_refused() -> None:
    with pytest.raises(UsageError, match="--eval is 3"):
        FoldConfig(model="m", ratio=0.2, eval=3)  # type: ignore[arg-type]
