from pathlib import Path
from typing import Any

import pytest

from llmfold import UsageError
from llmfold.experiments.settings import Settings
from llmfold.experiments.variants import Variant, parse_variants


def test_options_follow_their_method() -> None:
    assert parse_variants("paper,self:refine=0,align=none,weights", Variant) == (
        Variant("paper"),
        Variant("self", {"refine": 0, "align": "none"}),
        Variant("weights"),
    )
    assert parse_variants("flap:bias=false,num-samples=8", Variant)[0].options == {"bias": False, "num_samples": 8}


def test_only_what_a_seed_can_move_is_repeated() -> None:
    variants = parse_variants(
        "self,weights,random,calibrated,wanda-sp:data=self,paper:cluster=kmeans,paper,flap,magnitude", Variant
    )
    assert [v.random for v in variants] == [True] * 6 + [False] * 3


def test_pruners_on_the_models_own_text_are_moved_by_seeds() -> None:
    seeds = {
        data: [
            (variant.method, seed)
            for _, variant, seed in settings(methods="wanda-sp,paper", ratio=(0.2,), data=data).folds()
        ]
        for data in ("self", "a.txt")
    }
    assert seeds["self"] == [*(("wanda-sp", seed) for seed in range(3)), ("paper", 0)]
    assert seeds["a.txt"] == [("wanda-sp", 0), ("paper", 0)]


def test_labels_are_what_a_person_types_without_folders(tmp_path: Path) -> None:
    data = tmp_path / "other.txt"
    data.touch()
    labels = [v.label for v in parse_variants(f"paper,flap:bias=false,data={data},calibrated:data=owner/set", Variant)]
    assert labels == ["paper", "flap:bias=false,data=other.txt", "calibrated:data=owner/set"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("papr", "'papr'"),
        ("", "''"),
        ("paper,,self", "''"),
        ("paper,paper", "paper twice"),
        ("self:refin=0", "'refin'"),
        ("self:seed=1", "'seed'"),
        ("self:ratio=0.1", "'ratio'"),
        ("self:refine", "self:name=value"),
        ("self:refine=", "self:name=value"),
        ("self:refine=0,refine=1", "every name once"),
        ("refine=0", "'refine=0'"),
        ("self:refine=[", "not a value"),
    ],
)
def test_what_is_wrong_with_methods_is_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_variants(text, Variant)


def settings(**options: Any) -> Settings:
    return Settings(**{"model": "demo", "methods": "paper", "text": "t.txt", "output": Path("out"), **options})


def test_only_methods_that_read_data_get_it() -> None:
    made = settings(methods="paper,calibrated,flap:data=b.txt", ratio=(0.2,), data="a.txt")
    configs = [made.fold_config(v, {"ratio": 0.2}, 0, Path("o")) for v in made.variants]
    assert [c.data for c in configs] == [None, "a.txt", "b.txt"]


def test_one_kind_of_ratio_may_have_several_values() -> None:
    made = settings(ratio=(0.1, 0.2), attention_ratio=(0.0,), methods="self")
    assert made.amounts() == [{"ratio": 0.1, "attention_ratio": 0.0}, {"ratio": 0.2, "attention_ratio": 0.0}]
    assert len(list(made.folds())) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing says how much"),
        ({"ratio": (0.2, 1.5)}, "--ratio is 1.5"),
        ({"ratio": (0.1, 0.2), "mlp_ratio": (0.1, 0.2)}, "only one of"),
        ({"ratio": (0.2,), "seeds": 0}, "--seeds"),
        ({"ratio": (0.2,), "batch_size": 0}, "--batch-size"),
        ({"ratio": (0.2,), "fidelity_tokens": -1}, "--fidelity-tokens"),
        ({"ratio": (0.2,), "compute_dtype": "int8"}, "--compute-dtype"),
        ({"ratio": (0.2,), "methods": "calibrated"}, "--data"),
        ({"ratio": (0.2,), "methods": "self:refine=-1"}, "--refine"),
        ({"ratio": (0.2,), "methods": "self:fidelity_tokens=0"}, "fidelity_tokens"),
        ({"ratio": (0.2,), "methods": "paper,magnitude", "data": "a.txt"}, "--data is used by none of paper,magnitude"),
    ],
)
def test_bad_settings_are_refused_before_any_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings(**options)


def test_the_command_names_no_folder(tmp_path: Path) -> None:
    data = tmp_path / "train.txt"
    data.touch()
    made = settings(
        model=str(tmp_path),
        text=str(data),
        data=str(data),
        output=tmp_path / "table",
        ratio=(0.1, 0.2),
        keep=True,
        methods=f"paper,calibrated:data={data}",
        windows=60,
    )
    assert made.command() == (
        f"llmfold compare --model {tmp_path.name} --methods paper,calibrated:data=train.txt --text train.txt "
        "--output table --ratio 0.1,0.2 --data train.txt --windows 60"
    )
