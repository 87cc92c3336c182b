"""Recipes, and what llmfold itself has written: reports, results, journals."""

import json

from hostile_inputs.junk import json_files
from hostile_inputs.yaml_files import recipes
from hypothesis import strategies as st

from hostile_targets.kind import Kind, Step
from hostile_targets.world import World
from llmfold.checkpoint import Journal
from llmfold.config import FoldConfig as Options
from llmfold.evaluation.cache import ResultCache
from llmfold.experiments.results import Results, Row, Run, summarise
from llmfold.experiments.variants import Variant, parse_variants
from llmfold.hub.push import check_finished
from llmfold.recipe import load_recipe


def placed(name: str) -> Step:
    """An input that is the content of one file."""

    def place(world: World, data: bytes) -> None:
        (world.case / name).write_bytes(data)

    return place


def _nothing(world: World, value: object) -> None:
    """For an input that is in no file."""


def recipe(world: World, _: object) -> None:
    Options(**{"model": "m", **load_recipe(world.case / "recipe.yaml")})


def _variants(world: World, text: str) -> None:
    for variant in parse_variants(text, Variant):
        Options(model="m", ratio=0.2, **variant.fold_options("x.txt"))


_METHODS = ("paper", "self", "weights", "calibrated", "random", "wanda-sp")
_VALUES = st.sampled_from(
    ["0", "[" * 5000, "0x" + "f" * 9000, "!!int ''", "2024-99-99", "*x", "{a: 1}", "&a [*a]", "1" * 9000]
)
_OPTION = st.builds(
    "{}={}".format, st.sampled_from(["refine", "align", "data", "seed", "cluster"]), _VALUES | st.text(max_size=5)
)
_VARIANT = st.builds(
    lambda name, pairs: ":".join([name, ",".join(pairs)]), st.sampled_from(_METHODS), st.lists(_OPTION, max_size=3)
)


def _place_report(world: World, data: bytes) -> None:
    world.like(world.folded, "report.json")
    (world.case / "report.json").write_bytes(data)


def _report(world: World, _: object) -> None:
    check_finished(world.case)


def _reports(world: World) -> st.SearchStrategy[bytes]:
    base = json.loads((world.folded / "report.json").read_text())
    quality = {
        "model": {"name": "x", "perplexity": None, "tasks": {}},
        "dense": None,
        "fidelity": {"kl": 0.1, "top1": 0.9},
    }
    return json_files({**base, "quality": quality} if not base["quality"] else base, ("notes", "quality", "base_card"))


RUN = Run("key", "paper", {"ratio": 0.2}, 0, None, "no data", 9.0, 0.1, 0.2, 0.9, 100, 0.2, 0.3, 1.0)


def _comparison(world: World, _: object) -> None:
    results = Results.load(world.case, Run)
    rows = [summarise([run], Row) for run in results.runs.values()]
    results.save({}, rows)


def _evaluation(world: World, _: object) -> None:
    results = ResultCache(world.case / "eval.json")
    results.get("new", lambda: {"x": 1})


def _journal(world: World, _: object) -> None:
    with Journal.open(world.case / "journal.jsonl", {"source": "x", "config": {"ratio": 0.2}}) as journal:
        journal.append("layer-9", {}, {})
        journal.units_beside()


def _journals(_: World) -> st.SearchStrategy[bytes]:
    head = {"source": "x", "config": {"ratio": 0.2}}
    line = json_files({"unit": "layer-0", "digests": {"a": "0" * 64}, "record": {"mlp": {}}})
    lines = st.lists(line, max_size=3)
    return st.builds(
        lambda first, rest: b"\n".join([first, *rest, b""]),
        json_files(head) | st.just(b'{"source": "x", "config": {"ratio": 0.2}}'),
        lines,
    )


KINDS = {
    "recipe": Kind(0.08, lambda _: recipes(), placed("recipe.yaml"), recipe),
    "variants of compare": Kind(0.001, lambda _: st.lists(_VARIANT, max_size=3).map(",".join), _nothing, _variants),
    "report.json": Kind(0.04, _reports, _place_report, _report),
    "compare.json": Kind(
        0.03,
        lambda _: json_files({"format": 1, "dense": {"key": "x"}, "runs": [vars(RUN)]}, ("finished",)),
        placed("compare.json"),
        _comparison,
    ),
    "results of eval": Kind(
        0.01,
        lambda _: json_files({"format": 1, "finished": {"key": {"value": 1.0}}}),
        placed("eval.json"),
        _evaluation,
    ),
    "journal": Kind(0.01, _journals, placed("journal.jsonl"), _journal),
}
