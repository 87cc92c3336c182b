r"""Fold one model in many ways and score every fold on several texts and tasks, in one table.

    python eval/real_model.py run MODEL --name smollm2 --device auto \
        --text wikitext-2-raw-v1-test.txt:31-130 --text tinystories-validation-head.txt:1-100 \
        --fold dense --fold self:mlp_ratio=0.25,attention_ratio=0 --seed 0 1 2 \
        --fold wanda-sp:mlp_ratio=0.25,attention_ratio=0,data=wikipedia-train.txt.xz,num_samples=128,sequence_length=256
    python eval/real_model.py page

A fold is a method with options of ``llmfold.fold`` behind it; with ``ratio=0.1|0.3`` it is one for each, made in one
pass where the method can. What stands in ``eval/results/real/NAME`` is not made again, so folds can be dealt out to
several commands, and texts or tasks that are named later are added. Where ``llmfold compare`` scores on one text, this
scores on all.
"""

import argparse
import dataclasses
import itertools
import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from keeping import command_line, place, store

from llmfold.api import fold_configs
from llmfold.config import FoldConfig
from llmfold.data.texts import read_text
from llmfold.evaluation.loading import Loading, opened
from llmfold.evaluation.perplexity import Windows, score, text_windows
from llmfold.evaluation.zeroshot import Harness
from llmfold.registry import SELF_DATA, names
from llmfold.runtime.devices import pick_device

RESULTS = Path(__file__).parent / "results" / "real"
DENSE = "dense"
SLICING, DROPPING, SEARCHING = "slicegpt", "shortgpt", "osscar"
"""Results of ``eval/slicegpt.py``, ``eval/shortgpt.py`` and ``eval/osscar.py``, no folds but in the same tables."""
AMOUNTS = ("ratio", "ratio_of", "mlp_ratio", "attention_ratio", "fraction")
RIVALS = (*names(lambda method: method.needs_data and not method.folds), SLICING, DROPPING)
"""Those that others are measured by; OSSCAR, which refits as folds do, stands beside them."""
ALIKE = 0.015
"""Shares of the decoder removed that differ by no more than this are put in one table: half of a block in thirty."""
UNCHECKED = {"verify": "shapes", "fidelity_tokens": 0}
"""Options of all folds: what a fold checks of itself is measured here anyway."""


@dataclass(frozen=True)
class Case:
    """A method, its options as they are typed, and a seed."""

    spec: str
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """Options of :func:`llmfold.fold`."""
        method, _, rest = self.spec.partition(":")
        pairs = (pair.partition("=")[::2] for pair in rest.split(",") if pair)
        return {"method": method, "seed": self.seed, **{name: yaml.safe_load(value) for name, value in pairs}}

    @property
    def public(self) -> dict[str, Any]:
        """The same with files by their names only."""
        return {name: Path(value).name if name == "data" else value for name, value in self.options.items()}

    @property
    def file(self) -> str:
        """Name of its results."""
        words = [f"{name}={value}" for name, value in self.public.items() if name != "method"]
        return re.sub(r"[^\w.=-]+", "-", "_".join([self.public["method"], *words])) + ".json"


@dataclass(frozen=True)
class Yardstick:
    """What every fold is scored on, and where."""

    windows: dict[str, Windows]
    harness: Harness | None
    device: torch.device

    def left(self, standing: dict[str, Any]) -> "Yardstick":
        """What a result lacks."""
        windows = {name: found for name, found in self.windows.items() if name not in standing["nll"]}
        names = tuple(name for name in self.harness.names if name not in standing["tasks"]) if self.harness else ()
        harness = dataclasses.replace(self.harness, names=names) if self.harness and names else None
        return Yardstick(windows, harness, self.device)

    @property
    def empty(self) -> bool:
        """Nothing to score."""
        return not self.windows and self.harness is None

    def measure(self, folder: Path, remote_code: bool) -> dict[str, Any]:
        """Negative log-likelihoods by text, and accuracies by task: value and standard error."""
        loading = Loading(torch.float32, self.device)
        with opened(folder, loading, remote_code=remote_code) as model:
            nll = {name: score(model, windows).nll for name, windows in self.windows.items()}
            tasks: dict[str, Any] = {}
            if self.harness:
                scores = {name: self.harness.run(name, model, folder) for name in self.harness.names}
                tasks = {name: found.metrics.get("acc_norm", found.metrics["acc"]) for name, found in scores.items()}
        return {"nll": nll, "tasks": tasks}


def windows_of(folder: Path, text: str, length: int) -> tuple[str, Windows]:
    """Windows FIRST to LAST of a text given as FILE:FIRST-LAST, under a name that says which."""
    path, _, span = text.rpartition(":")
    first, last = map(int, span.split("-"))
    found = read_text(path)
    head = text_windows(folder, found, length=length, limit=last)
    protocol = f"{head.protocol}; of these the windows {first} to {last}"
    return f"{found.name} {span}", dataclasses.replace(head, tokens=head.tokens[first - 1 :], protocol=protocol)


def run(arguments: argparse.Namespace) -> None:
    """Make and score the folds that do not stand yet."""
    results: Path = RESULTS / arguments.name
    results.mkdir(parents=True, exist_ok=True)
    windows = dict(windows_of(arguments.folder, text, arguments.length) for text in arguments.text)
    harness = Harness(tuple(arguments.tasks), arguments.data_dir, arguments.limit) if arguments.tasks else None
    yardstick = Yardstick(windows, harness, pick_device(arguments.device))
    protocols = {name: found.protocol for name, found in windows.items()}
    how = {"length": arguments.length, "limit": arguments.limit, "note": arguments.note}
    for spec, seed in itertools.product(arguments.fold, arguments.seed):
        wanted = {case: _standing(results / case.file, arguments.length) for case in cases(spec, seed)}
        left = {case: yardstick.left(standing) for case, standing in wanted.items()}
        with tempfile.TemporaryDirectory(prefix="llmfold-", dir=arguments.scratch) as scratch:
            folds = _folded([case for case in wanted if not left[case].empty], arguments, Path(scratch))
            for case, (folder, remote_code, made) in folds.items():
                before, found = wanted[case], left[case].measure(folder, remote_code)
                found["protocols"] = protocols
                both = {kind: {**before[kind], **found[kind]} for kind in found}
                store(results / case.file, {"case": case.public, **made, **both, **how})
                said = [f"{name} {math.exp(value):.2f}" for name, value in found["nll"].items()]
                said += [f"{name} {100 * value:.1f} %" for name, (value, _) in found["tasks"].items()]
                print(f"{case.spec}, seed {case.seed}: {', '.join(said)}", flush=True)


def cases(spec: str, seed: int) -> list[Case]:
    """The folds of a spec, whose ratios may be several."""
    ratios = re.search(r"(?<=[:,]ratio=)[^,]+", spec)
    if ratios is None:
        return [Case(spec, seed)]
    return [Case(spec.replace(ratios[0], ratio), seed) for ratio in ratios[0].split("|")]


def _standing(path: Path, length: int) -> dict[str, Any]:
    """What there is of a result, whose windows must be as long as those to add."""
    if not path.exists():
        return {"nll": {}, "tasks": {}, "protocols": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["length"] != length:
        raise SystemExit(f"{path} has windows of {found['length']} tokens, not {length}: choose another --name")
    return found


def _folded(
    cases: Sequence[Case], arguments: argparse.Namespace, scratch: Path
) -> dict[Case, tuple[Path, bool, dict[str, Any]]]:
    """Folder of each case, whether it needs remote code, and what was measured while it was made."""
    if not cases or cases[0].spec == DENSE:
        return {case: (arguments.folder, False, {}) for case in cases}
    common = {"compute_dtype": "float32", "device": arguments.device, **UNCHECKED}
    folders = [scratch / str(number) for number in range(len(cases))]
    configs = [
        FoldConfig(str(arguments.folder), **{"output": str(folder), **common, **case.options})
        for case, folder in zip(cases, folders, strict=True)
    ]
    begin = time.perf_counter()
    reports = fold_configs(configs, quiet=True)
    seconds = (time.perf_counter() - begin) / len(cases)
    return {
        case: (
            folder,
            bool(report.plan["needs_trust_remote_code"]),
            {
                "removed": report.ratio,
                "removed_decoder": report.plan["decoder_ratio"],
                "widths": [
                    [layer["after"][unit] for unit in ("intermediate", "heads")] for layer in report.plan["layers"]
                ],
                "seconds": seconds,
                "stages": report.seconds,
            },
        )
        for case, folder, report in zip(cases, folders, reports, strict=True)
    }


def page() -> None:
    """Write a page of every model's folds."""
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        dense = next(each for each in found if each["case"]["method"] == DENSE)
        groups = _grouped(found)
        lines = [f"# {folder.name}: folds on several texts", "", dense["note"], ""]
        lines += [
            "Excess log-perplexity, and in brackets its ratio to the least of the rivals that need data in the same "
            "table (the pruners of llmfold, SliceGPT and ShortGPT; OSSCAR, which is given data and refits by least "
            "squares, stands beside them); ± is the sample standard deviation over seeds. Made by "
            "`eval/real_model.py`, and what SliceGPT, ShortGPT and OSSCAR give by `eval/slicegpt.py`, "
            "`eval/shortgpt.py` and `eval/osscar.py`, in float32. A letter behind the seconds names the machine. A row "
            "by the options of its name and heading, underscores for hyphens, and of all seeds from 0 on:",
            "",
            "```bash",
            f"python eval/real_model.py run MODEL --name {folder.name} --text FILE:FIRST-LAST "
            "--fold METHOD:option=value,… --seed 0 1 2",
            "```",
            "",
            f"Dense: {', '.join(f'{name}: {math.exp(value):.2f}' for name, value in dense['nll'].items())}.",
            "",
        ]
        places = list(dict.fromkeys(place(each) for each in found))
        for amount in sorted(groups):
            lines += [f"## {amount}", "", *_table(amount, groups[amount], dense, places), ""]
        lines += _tasks(found)
        lines += [f"- {name}: {protocol}." for name, protocol in dense["protocols"].items()]
        lines += ["", *(f"- ({_letter(number)}) {words}." for number, words in enumerate(places)), ""]
        (RESULTS.parent / f"{folder.name}-real.md").write_text("\n".join(lines), encoding="utf-8")


def _grouped(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results by their amounts; those without a rival that needs data stand beside others that remove as much.

    Beside others too that were asked for the same ratio, where widths are rounded apart: rows say what was removed.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in results:
        if each["case"]["method"] != DENSE and _amount(each["case"]):
            groups.setdefault(_amount(each["case"]), []).append(each)
    ranks = {name: max(map(_rank, some)) for name, some in groups.items()}
    for name in sorted(groups, key=ranks.__getitem__, reverse=True):  # no folds last: no group moves after them
        beside = [other for other in groups if ranks[other] > ranks[name] and _alike(groups[other], groups[name][0])]
        for other in beside:
            groups[other] += groups[name]
        if beside:
            del groups[name]
    return groups


def _rank(result: dict[str, Any]) -> int:
    """What is no fold goes to folds, and folds alone go to where a rival is."""
    method = result["case"]["method"]
    return 0 if method in (SLICING, DROPPING, SEARCHING) else 1 + _calibrated(result["case"])


def _calibrated(case: dict[str, Any]) -> bool:
    """Whether a case is a rival that was given outside text."""
    return case["method"] in RIVALS and case["data"] != SELF_DATA


def _alike(results: Sequence[dict[str, Any]], one: dict[str, Any]) -> bool:
    return any(
        abs(each["removed_decoder"] - one["removed_decoder"]) <= ALIKE or _asked(each) == _asked(one) is not None
        for each in results
    )


def _asked(result: dict[str, Any]) -> tuple[Any, ...] | None:
    """The ratio that a fold was asked for."""
    case = result["case"]
    return (case["ratio"], case.get("ratio_of")) if "ratio" in case else None


def _amount(case: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', '-')} {case[name]}" for name in AMOUNTS if name in case)


def _label(case: dict[str, Any]) -> str:
    rest = [f"{name} {value}" for name, value in case.items() if name not in ("method", "seed", *AMOUNTS)]
    return ", ".join([case["method"], *rest])


def _removed(result: dict[str, Any]) -> str:
    share = f"{result['removed_decoder']:.1%}"
    if result["case"]["method"] == SLICING:
        return f"{share} ({result['removed_decoder_without_shortcuts']:.1%} without shortcuts), width {result['width']}"
    if result["case"]["method"] == DROPPING:
        return f"{share}: blocks {', '.join(map(str, result['blocks']))}"
    return share


def _letter(number: int) -> str:
    return chr(ord("a") + number)


def _table(amount: str, found: Sequence[dict[str, Any]], dense: dict[str, Any], places: Sequence[str]) -> list[str]:
    """Rows of one amount, or of one alike that is named, the best on the first text first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        own = _amount(each["case"])
        rows.setdefault(_label(each["case"]) + (f"; {own}" if own != amount else ""), []).append(each)
    excess = {
        label: {name: [each["nll"][name] - dense["nll"][name] for each in some] for name in dense["nll"]}
        for label, some in rows.items()
    }
    rivals = [label for label, some in rows.items() if _calibrated(some[0]["case"])]
    lines = [f"| method | {' | '.join(dense['nll'])} | decoder removed | seconds | seeds |"]
    lines.append("|---|" + "---:|" * (len(dense["nll"]) + 3))
    first = next(iter(dense["nll"]))
    for label in sorted(rows, key=lambda label: statistics.fmean(excess[label][first])):
        cells = []
        for name in dense["nll"]:
            values = excess[label][name]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            best = min((statistics.fmean(excess[rival][name]) for rival in rivals), default=math.nan)
            ratio = f" ({statistics.fmean(values) / best:.2f})" if rivals else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}{ratio}")
        some = rows[label]
        seconds = statistics.fmean(each["seconds"] for each in some)
        removed, where = _removed(some[0]), _letter(places.index(place(some[0])))
        lines.append(f"| {label} | {' | '.join(cells)} | {removed} | {seconds:.0f} ({where}) | {len(some)} |")
    return lines


def _tasks(found: Sequence[dict[str, Any]]) -> list[str]:
    """Zero-shot accuracies of the folds that have them."""
    scored = [each for each in found if each["tasks"]]
    if not scored:
        return []
    names = list(scored[0]["tasks"])
    lines = ["## Zero-shot", "", f"| method | {' | '.join(names)} | average | needs data |"]
    lines.append("|---|" + "---:|" * (len(names) + 1) + "---|")
    for each in sorted(scored, key=lambda each: -statistics.fmean(each["tasks"][name][0] for name in names)):
        cells = [f"{100 * value:.1f} ± {100 * error:.1f}" for value, error in (each["tasks"][name] for name in names)]
        mean = statistics.fmean(each["tasks"][name][0] for name in names)
        case, data = each["case"], "yes" if each["case"].get("data", SELF_DATA) != SELF_DATA else "no"
        what = DENSE if case["method"] == DENSE else f"{_label(case)}; {_amount(case)}; seed {case['seed']}"
        lines.append(f"| {what} | {' | '.join(cells)} | {100 * mean:.1f} | {data} |")
    what = f"Accuracy in %, of the first {scored[0]['limit']} documents of a task, without examples"
    return [*lines, "", f"{what}; normalised by length where lm-eval has that.", ""]


def describe(runs: argparse.ArgumentParser) -> None:
    """Options of this script."""
    runs.add_argument("--fold", action="append", required=True, help="METHOD:option=value,…, or 'dense'")
    runs.add_argument("--seed", nargs="+", type=int, default=[0], help="seeds to fold with")
    runs.add_argument("--text", action="append", required=True, help="FILE:FIRST-LAST, windows to score")
    runs.add_argument("--scratch", type=Path, help="where folds lie until they are scored")
    runs.add_argument("--tasks", nargs="*", default=[], help="zero-shot tasks of lm-eval")
    runs.add_argument("--data-dir", type=Path, help="JSON lines of the tasks")
    runs.add_argument("--limit", type=int, help="documents of a task")


if __name__ == "__main__":
    command_line(__doc__, describe, run, page)
