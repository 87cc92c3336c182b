"""Files that somebody made to do harm: a sentence, no hang, no memory, nothing outside the output, no code run.

One test for each kind of fault that ``eval/hostile.py`` has found, and a few inputs of each kind that it sends.
"""

import gzip
import json
import lzma
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reading import teach
from support import CONFIG, INDEX, ROOT, SINGLE, edit_json

from llmfold import CheckpointError, LlmfoldError, OutputError, UsageError, plan
from llmfold.checkpoint.base_card import carried_over
from llmfold.checkpoint.side_files import MAX_SIDE_BYTES, copy_side_files
from llmfold.data import plain_text
from llmfold.data.plain_text import read_plain_text
from llmfold.data.tokens import token_ids
from llmfold.experiments.results import Results
from llmfold.experiments.results import Run as FoldRun
from llmfold.experiments.variants import Variant, parse_variants
from llmfold.jsonfile import MAX_DEPTH, MAX_JSON_BYTES, parse_object
from llmfold.options import public_file
from llmfold.recipe import load_recipe
from llmfold.records.saved import load_record

sys.path.insert(0, str(ROOT / "eval"))
import hostile_targets  # type: ignore[import-not-found]

Run = Callable[..., tuple[int, str, str]]
FOLD = ("--ratio", 0.2, "--method", "paper", "--fidelity-tokens", 0)


def refused(folder: Path, **config: Any) -> str:
    """The sentence of a plan whose config.json has these fields."""
    edit_json(folder / CONFIG, **config)
    with pytest.raises(LlmfoldError) as caught:
        plan(str(folder), ratio=0.2, method="paper")
    return str(caught.value)


def test_what_a_sentence_quotes_is_printable_and_short() -> None:
    text = str(CheckpointError("tensor 'a\n\x1b[31m\ud800' " + "x" * 100_000 + ": download it again"))
    assert text.isprintable()
    assert text.startswith(r"tensor 'a \x1b[31m\ud800'")
    assert text.endswith(": download it again")
    assert len(text) < 2100
    text.encode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH + b" ", None),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested deeper"),
        (b'{"a":[' + b"[]," * 600_000 + b"0]}", "holds more than"),
        (b" " * (MAX_JSON_BYTES + 1), "holds more than"),
    ],
)
def test_json_has_bounds(tmp_path: Path, text: bytes, words: str | None) -> None:
    if words is None:
        assert parse_object(text, tmp_path, unique_keys=True)
        return
    with pytest.raises(CheckpointError, match=words):
        parse_object(text, tmp_path, unique_keys=True)


def test_a_name_given_twice_among_many_is_found_at_once(tmp_path: Path) -> None:
    text = b"{" + b",".join(b'"%d":1' % number for number in range(200_000)) + b',"7":1}'
    start = time.process_time()
    with pytest.raises(CheckpointError, match="names '7' twice"):
        parse_object(text, tmp_path, unique_keys=True)
    assert time.process_time() - start < 5


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json is 1000000000, more than"),
    "sizes without end": ({"hidden_size": 10**3000, "head_dim": 10**3000}, "more than the 2147483647 of any model"),
    "a type that is a list": ({"model_type": ["llama"]}, "which is no name"),
    "an index of a thousand digits": ({"per_layer_config": {"9" * 5000: {"intermediate_size": 8}}}, "names layer 999"),
    "layers that are lists": ({"model_type": "mistral", "layer_types": [[], []]}, "layer_types"),
    "an activation that is a list": ({"hidden_act": ["silu"]}, "hidden_act"),
    "no number for eps": ({"rms_norm_eps": float("nan")}, "rms_norm_eps in config.json is nan"),
    "no base": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}, "use_cache": None}, "rotary"),
    "no factor": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": "x"}}, "rotary"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_lie(model: Path, case: str) -> None:
    fields, words = CONFIGS[case]
    assert words in refused(model, **fields)


def test_a_lone_surrogate_and_names_that_are_no_text_reach_the_output(llmfold: Run, model: Path, space: Path) -> None:
    edit_json(model / CONFIG, note="\ud800")
    for name in (b"\xff.txt", b"a\nb\x1b[31m.txt", b"[red]x[.txt", b"license\xff"):
        (Path(os.fsdecode(os.fsencode(model) + b"/" + name))).write_bytes(b"x")
    code, _, err = llmfold("--model", model, *FOLD, "--output", space / "out")
    assert code == 0, err
    assert json.loads((space / "out" / CONFIG).read_text())["note"] == "\ud800"
    (note,) = json.loads((space / "out" / "report.json").read_text())["notes"]
    assert "\\x1b[31m.txt" in note
    assert note.isprintable()
    assert b"license\xff" in os.listdir(os.fsencode(space / "out"))


def test_side_files_have_bounds_and_are_not_held_in_memory(tmp_path: Path) -> None:
    model, out = tmp_path / "m", tmp_path / "out"
    model.mkdir()
    out.mkdir()
    os.truncate(_touched(model / "tokenizer.json"), MAX_SIDE_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is larger than"):
        copy_side_files(model, out)
    os.truncate(model / "tokenizer.json", 3)
    os.truncate(_touched(model / "tokenizer_config.json"), MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is larger than"):
        copy_side_files(model, out)


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_a_generation_config_leads_nowhere(model: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("{}")
    (model / "generation_config.json").unlink()
    (model / "generation_config.json").symlink_to(tmp_path / "private")
    assert "outside the model folder" in refused(model)


CARDS = {
    "aliases": "a: &a [x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "license: *i",
    "merges": "a: &a {x: 1}\n"
    + "".join(
        f"{b}: &{b} {{<<: [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]}}\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "license: mit",
    "no date": "license: 2024-99-99",
    "no truth": "license: !!bool maybe",
    "itself": "license: &a [*a]",
    "depth": "license: " + "[" * 400,
}


@pytest.mark.parametrize("case", CARDS)
def test_cards_are_left_out_and_recipes_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{CARDS[case]}\n---\n")
    assert carried_over(tmp_path) == {}
    (tmp_path / "recipe.yaml").write_text(CARDS[case])
    with pytest.raises(UsageError, match=r"recipe .*recipe\.yaml"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("value", ["0x" + "f" * 9000, "!!int ''", "!!timestamp x", "1" * 5000, "{? [a] : b}"])
def test_values_that_yaml_cannot_make(tmp_path: Path, value: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"ratio: {value}\n")
    with pytest.raises(UsageError, match="is not valid YAML"):
        load_recipe(tmp_path / "recipe.yaml")
    if "," not in value and ":" not in value:
        with pytest.raises(UsageError, match="--methods"):
            parse_variants(f"paper:seed={value}", Variant)


def test_an_alias_that_stands_for_little_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("layers: {1: &half {mlp: 0.5}, 2: *half}\n")
    assert load_recipe(tmp_path / "recipe.yaml")["layers"][2].mlp == 0.5


def test_a_name_too_long_for_a_file_is_a_name() -> None:
    assert public_file("x" * 9000) == "x" * 9000


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_texts_have_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(plain_text, "MAX_CHARACTERS", 1000)
    monkeypatch.setattr(plain_text, "_LONGEST_LINE", 1000)
    end = ".gz" if pack is gzip.compress else ".xz"
    prose, table = tmp_path / f"a.txt{end}", tmp_path / f"a.jsonl{end}"
    prose.write_bytes(pack(b"a b " * 300))
    table.write_bytes(pack(json.dumps({"text": "a b " * 300}).encode()))
    with pytest.raises(UsageError, match="more than 1000 characters"):
        read_plain_text(prose)
    assert read_plain_text(prose, characters=10) == "a b a b a "
    pytest.importorskip("datasets")
    with pytest.raises(UsageError, match="a line of more than 1000 bytes"):
        read_plain_text(table)


def test_a_deep_value_in_a_table_does_not_end_the_process(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x", "y": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n")
    with pytest.raises(UsageError, match="nests values deeper than 64 levels"):
        read_plain_text(path)
    path.write_text(json.dumps({"text": "[{" * 1000 + '\\"[['}) + "\n")
    assert read_plain_text(path).startswith("[{[{")


def test_settings_of_a_tokenizer_that_are_none(model: Path) -> None:
    edit_json(teach(model) / "tokenizer_config.json", model_max_length={"a": 1})
    with pytest.raises(
        CheckpointError, match=r"the tokenizer in .* cannot read text \(TypeError: .*: download it again"
    ):
        token_ids(model, "it was")


def test_a_table_of_a_great_many_columns_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "a.csv").write_text(",".join(map(str, range(20_000))) + "\n" + "x," * 20_000)
    with pytest.raises(UsageError, match="more than 1000 columns"):
        read_plain_text(tmp_path / "a.csv")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100 + "1" + "}" * 100, "[]", "\udcff"])
def test_reports_and_results(tmp_path: Path, content: str) -> None:
    for name in ("report.json", "compare.json"):
        (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(OutputError, match=r"report\.json cannot be read"):
        load_record(tmp_path)
    with pytest.raises(UsageError, match="no comparison that can be continued"):
        Results.load(tmp_path, FoldRun)


@pytest.mark.parametrize("field", ["perplexity", "seed", "method", "amount"])
def test_a_run_holds_texts_and_numbers(tmp_path: Path, field: str) -> None:
    run = {"key": "k", "method": "paper", "amount": {"ratio": 0.2}, "seed": 0, field: ["x"]}
    (tmp_path / "compare.json").write_text(json.dumps({"format": 1, "dense": {}, "runs": [run]}))
    with pytest.raises(UsageError, match="no comparison that can be continued"):
        Results.load(tmp_path, FoldRun)


class _Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", [SINGLE, INDEX, CONFIG, "tokenizer.json", "tokenizer_config.json", "README.md"])
def test_a_pickle_in_disguise_is_not_opened(llmfold: Run, model: Path, space: Path, name: str) -> None:
    canary = space.parent / "canary"
    (model / name).write_bytes(pickle.dumps(_Evil(canary)))
    code, _, err = llmfold("--model", model, *FOLD, "--output", space / "out")
    assert (code, "unexpected" in err) == (int(name in (SINGLE, INDEX, CONFIG)), False), err
    assert not canary.exists()
    assert set(os.listdir(space)) <= {"out"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return hostile_targets.World(tmp_path_factory.mktemp("hostile") / "world")


@pytest.fixture(scope="module")
def watch(world: Any) -> Any:
    return hostile_targets.Watch(world)


CHEAP = sorted(hostile_targets.TARGETS.keys() - {"bombs", "whole fold", "table of texts", "variants of compare"})


@pytest.mark.parametrize("name", CHEAP)
def test_a_few_of_each_kind(world: Any, watch: Any, name: str) -> None:
    kind = hostile_targets.TARGETS[name]
    faults: list[str] = []
    seen: list[bool] = []

    def each(value: Any) -> None:
        verdict = hostile_targets.judge(world, watch, kind, value)
        faults.extend([f"{verdict.fault}: {value!r:.500}"] if verdict.fault else [])
        seen.append(verdict.sentence is not None)

    hostile_targets.draw(world, kind, 0, 12, each)
    assert faults == []
    assert len(seen) > 5


def test_what_the_script_itself_clears_is_not_watched(world: Any, watch: Any) -> None:
    twice = [(b"tokenizer_config.json", "folder"), (b"tokenizer_config.json", "text")]
    kind = hostile_targets.TARGETS["links, pipes, disguises"]
    assert hostile_targets.judge(world, watch, kind, twice).fault is None


@pytest.mark.parametrize("change", [Path.touch, Path.mkdir])
def test_what_is_written_outside_is_seen(world: Any, watch: Any, change: Callable[[Path], None]) -> None:
    """The watch hears of a file and of a folder in the place of an input's own."""
    path = world.root.parent / f"outside-{change.__name__}"
    kind = hostile_targets.Kind(1, lambda _: None, lambda *_: None, lambda *_: change(path))
    assert hostile_targets.judge(world, watch, kind, None).fault in (
        f"outside: open {path}",
        f"outside: os.mkdir {path}",
    )
