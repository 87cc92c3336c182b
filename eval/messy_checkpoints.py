"""Messy checkpoints at random: what stock transformers loads is folded alike, or refused for a reason on a short list.

``run`` composes checkpoints of tests/messy/generator.py by seed, and adds what became of each to a file of cases; seeds
that stand there are not done again. ``page`` counts them. The property is that of tests/messy/judge.py.
"""

import argparse
import json
import os
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from keeping import place
from messy.generator import Composition, compositions
from messy.judge import FINE, NOT_LOADED, REFUSED, judge, reasons

from llmfold.environment import machine_words, versions

PAGE = Path(__file__).parent / "results" / "messy.md"
BATCH = 50
"""Compositions that are drawn from one seed."""
_ABOUT = (
    "From small sound models of four families, [a generator](../../tests/messy/generator.py) composes two to five "
    "[faults that real folders have](../../tests/messy/faults). What stock transformers loads and computes with "
    "finite logits must be folded with equal logits, tokenizer and generation config at ratio 0, or refused by `plan` "
    "and fold alike, in one sentence and for a reason on [a list](../../tests/messy/reasons.yaml); what stock does "
    "not load must be refused in a sentence too. Nothing may be left behind.",
)
_FOUND = (
    "What stock does not compute and llmfold accepts at opening has logits that are not finite: weights are read by "
    "the fold, not by the plan.",
    "Found by earlier runs and mended, each with a fixed test: configs taken for plain that transformers "
    "refuses (types of numbers, padding tokens, heads without a width); settings that stop it from building or "
    "running a model (rotary parameters, `return_dict`, `text_config`, dtypes of integers); generation configs that "
    "it refuses; an index without metadata; Mistral with `layer_types`, which it reads as Ministral; a config without "
    "a number of positions; a tokenizer whose class an `auto_map` decided that the output does not have; refusals "
    "without a remedy. Two faults of the first 13,000 (a type whose class divides by zero, a refusal without a "
    "remedy) were mended and the compositions of their seeds judged again; the 8,850 after them met none, 850 of these "
    "since the stock class tells of all families.",
)


def drawn(number: int) -> list[Composition]:
    """The compositions of one seed."""
    found: list[Composition] = []

    @seed(number)
    @settings(max_examples=BATCH, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(compositions())
    def collect(composition: Composition) -> None:
        found.append(composition)

    collect()
    return found[:BATCH]


def stored(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of cases."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(arguments: argparse.Namespace) -> None:
    """Judge compositions, seed after seed, until there are as many as wanted or the time is over."""
    torch.set_num_threads(1)
    kind = "whole" if arguments.whole else "opening"
    done = {case["seed"] for case in stored(arguments.cases) if case["kind"] == kind}
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for number in range(arguments.first, arguments.first + -(-arguments.count // BATCH)):
            if number in done or time.monotonic() > end:
                continue
            lines = []
            for place_in_seed, composition in enumerate(drawn(number)):
                case = judge(composition, Path(scratch), whole=arguments.whole)
                about = {"kind": kind, "seed": number, "place": place_in_seed, **composition.to_json()}
                lines.append(json.dumps({**about, **case.to_json()}))
                if case.outcome == "fault":
                    print(lines[-1], flush=True)
            with arguments.cases.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))


def page(arguments: argparse.Namespace) -> None:
    """Write the page of figures."""
    cases = stored(arguments.cases)
    kinds = {kind: [case for case in cases if case["kind"] == kind] for kind in ("opening", "whole")}
    counts = {kind: Counter(case["outcome"] for case in found) for kind, found in kinds.items()}
    unread = {k: [case for case in found if case["outcome"] == NOT_LOADED] for k, found in kinds.items()}
    rows = {
        "compositions": {kind: len(found) for kind, found in kinds.items()},
        "stock computes: accepted; whole, folded and all equal": {kind: counts[kind][FINE] for kind in kinds},
        "stock computes: refused for a reason on the list": {kind: counts[kind][REFUSED] for kind in kinds},
        "stock does not compute": {kind: len(unread[kind]) for kind in kinds},
        "of these refused in a sentence": {
            kind: sum(bool(case["sentence"]) for case in unread[kind]) for kind in kinds
        },
        "neither: a fault of llmfold": {kind: counts[kind]["fault"] for kind in kinds},
    }
    parts = ["# Messy checkpoints", *map(_filled, _ABOUT)]
    table = ["| | opened and planned | through the whole fold |", "|---|---:|---:|"]
    parts.append("\n".join(table + [f"| {name} | {n['opening']:,} | {n['whole']:,} |" for name, n in rows.items()]))
    table = ["| refused though stock computes | opened | whole | why |", "|---|---:|---:|---|"]
    for each in reasons():
        numbers = [sum(case["reason"] == each["reason"] for case in found) for found in kinds.values()]
        table.append(f"| {each['reason']} | {numbers[0]:,} | {numbers[1]:,} | {each['why']} |")
    parts += ["\n".join(table), *map(_filled, _FOUND), "\n".join(_commands(kinds))]
    parts.append(_filled(place({"machine": machine_words(), "versions": versions("hypothesis", "tokenizers")})))
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _commands(kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The commands that judge the same compositions, one for every run of seeds."""
    yield "```bash"
    for kind, option in (("opening", ""), ("whole", " --whole")):
        seeds = sorted({case["seed"] for case in kinds[kind]})
        for first in (number for number in seeds if number - 1 not in seeds):
            last = next(number for number in seeds if number >= first and number + 1 not in seeds)
            yield f"python eval/messy_checkpoints.py run --first {first} --count {(last - first + 1) * BATCH}{option}"
    yield "```"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=Path("build/messy.jsonl"), help="file of cases")
    parts = parser.add_subparsers(dest="part", required=True)
    runs = parts.add_parser("run", help="judge compositions whose seeds do not stand in the file of cases")
    runs.add_argument("--count", type=int, default=20_000, help="compositions")
    runs.add_argument("--first", type=int, default=0, help=f"first seed; each gives {BATCH}")
    runs.add_argument("--whole", action="store_true", help="fold them, instead of opening and planning only")
    runs.add_argument("--minutes", type=float, default=1e9, help="begin no seed after so long")
    runs.add_argument("--scratch", help="folder for the checkpoints (default: that of temporary files)")
    parts.add_parser("page", help="write the table")
    arguments = parser.parse_args()
    arguments.cases.parent.mkdir(parents=True, exist_ok=True)
    {"run": run, "page": page}[arguments.part](arguments)


if __name__ == "__main__":
    main()
