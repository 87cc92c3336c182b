"""Folds of several models in several engines: what loads, whether it computes the same, how fast, and what doctor says.

    make engines                                              # everything, and the page
    python eval/engines/matrix.py --models wiki-llama --engines transformers,vllm
    python eval/engines/matrix.py --spoil --models wiki-llama # proof that a wrong tensor fails

Exit code 1 where an engine loads a fold and computes something else, or does not do what ``llmfold doctor`` says.
``--spoil`` doubles one tensor in what the engines get, not in what the reference gets: every row must then fail, and
the exit code is 1 where one does not.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from agreement import compare
from calling import Answers, call, recorded, seconds_spent
from cases import ROOT, Case, build, cases, tokenizer_ids
from environments import ENGINES, Engine, make, ready
from page import page
from rows import Row

from llmfold.engines import Verdict, doctor
from llmfold.environment import machine_words

PAGE = ROOT / "eval" / "results" / "engines.md"
Found = tuple[Answers, Mapping[str, np.ndarray]]
Verdicts = Mapping[str, Mapping[str, Verdict]]
_PROMPT = "The history of the city begins with a small settlement on the river"
_MORE = ", which was founded in the twelfth century by traders"
_NEW = 64
_REFERENCE = "log-reference.txt"
_UNASKED = "it was not asked"
_TEXTS = ["The history of the city", "  Two  spaces,\n\tand a tab: 3.14159", "Ünïcödé 漢字 🙂", "if x:\n    y = [0]\n"]


def job(case: Case, folder: Path, *, remote_code: bool, full: Path | None = None) -> dict[str, Any]:
    """What an engine is asked of a case; see runner.py."""
    prompt, ids = (tokenizer_ids(case.folder, text) for text in (_PROMPT, _PROMPT + _MORE))
    asked = {"prompt": prompt, "ids": ids, "new": _NEW, "texts": _TEXTS, "pre": case.model.pre}
    where = {"name": case.name, "folder": str(folder), "remote_code": remote_code, "dtype": case.dtype}
    return {**where, **asked, **({"full": str(full)} if full else {})}


def references(todo: Sequence[Case], work: Path) -> Found:
    """Answers of the newest transformers, with eager attention, and its log-probabilities, by the names of cases."""
    told = recorded(work / _REFERENCE)
    new = [case for case in todo if case.name not in told or not _is_current(case, work)]
    asked = [job(case, case.folder, remote_code=_is_adaptive(case), full=_table(case, work)) for case in new]
    return {**told, **call(ENGINES[0], work, asked, work / _REFERENCE)}, _tables(todo, work)


def _is_current(case: Case, work: Path) -> bool:
    """Whether the reference has run the folder of a case since it was written."""
    table = _table(case, work)
    return table.exists() and table.stat().st_mtime > (case.folder / "config.json").stat().st_mtime


def _table(case: Case, work: Path) -> Path:
    """Where the reference's log-probabilities of a case are."""
    return work / f"reference-{case.folder.parent.name}-{case.folder.name}.npy"


def _tables(todo: Sequence[Case], work: Path) -> dict[str, np.ndarray]:
    return {case.name: np.load(_table(case, work)) for case in todo if _table(case, work).exists()}


def spoiled(case: Case, place: Path) -> Path:
    """A copy of the folder of a case with one tensor doubled: what the middle layer's MLP adds."""
    from safetensors.torch import load_file, save_file

    copy = place / case.folder.parent.name / case.folder.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(case.folder, copy)
    tensors = load_file(copy / "model.safetensors")
    ends = ("down_proj.weight", "w2.weight")
    names = [name for name in tensors if name.endswith(ends)]
    tensors[names[len(names) // 2]] *= 2
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def _is_adaptive(case: Case) -> bool:
    return "auto_map" in json.loads((case.folder / "config.json").read_text())


def _log(engine: Engine, work: Path, spoil: bool) -> Path:
    """The file that what an engine prints is added to, its answers among it."""
    return work / f"log-{'spoiled-' * spoil}{engine.key}.txt"


def _asked(engines: Sequence[Engine], work: Path, spoil: bool) -> dict[str, str]:
    """When each engine was last asked (UTC), and how long its processes lasted, by its key."""
    logs = {engine.key: _log(engine, work, spoil) for engine in engines}
    return {
        key: f"Last asked on {datetime.fromtimestamp(log.stat().st_mtime, timezone.utc).date()}; its processes lasted "
        f"{seconds_spent(log) / 60:.0f} minutes in all."
        for key, log in logs.items()
        if log.exists()
    }


def ask(engine: Engine, todo: Sequence[Case], work: Path, *, spoil: bool, missing: bool = False) -> Answers | str:
    """Answers of one engine by the names of cases, or why it cannot be asked. Code that folders have may run.

    Args:
        engine: which.
        todo: the cases.
        work: folder of the environments, and of what the engine prints.
        spoil: whether it gets copies with a wrong tensor.
        missing: whether it is not asked again what it has answered.
    """
    why = ready(engine, work)
    if why is not None:
        return why
    told = recorded(_log(engine, work, spoil)) if missing else {}
    todo = [case for case in todo if case.name not in told]
    folders = {case.name: spoiled(case, work / "spoiled" / engine.key) if spoil else case.folder for case in todo}
    asked = [job(case, folders[case.name], remote_code=_is_adaptive(case)) for case in todo]
    answers = call(engine, work, asked, _log(engine, work, spoil))
    print(f"ran {engine.title}", flush=True)
    return {**told, **answers}


def rows_of(
    engine: Engine,
    todo: Sequence[Case],
    answers: Answers | str,
    verdicts: Verdicts,
    found: Found,
) -> list[Row]:
    """Rows of one engine, its answers compared with those of the reference."""
    if isinstance(answers, str):
        return [Row(case, engine, None, {"error": answers}, None, skipped=True) for case in todo]
    rows = []
    for case in todo:
        if case.name not in answers:
            rows.append(Row(case, engine, None, {"error": _UNASKED}, None, skipped=True))
            continue
        answer, agreement = answers[case.name], None
        if "error" not in answer:
            reference = found[0][case.name] if case.model.reads else {**found[0][case.name], "read": None}
            rounding = case.model.rounding.get(case.dtype, 1)
            routed = case.model.routed
            agreement = compare(answer, reference, found[1][case.name], case.dtype, rounding, routed=routed)
        rows.append(Row(case, engine, verdicts[case.name][engine.key], answer, agreement))
    return rows


def judge(rows: Sequence[Row], *, spoil: bool) -> list[str]:
    """What is wrong, a sentence each."""
    if spoil:
        unseen = [row for row in rows if row.agreement is not None and not row.agreement.faults]
        seen = [row for row in rows if row.agreement is not None and row.agreement.faults]
        print(f"a doubled tensor was noticed in {len(seen)} rows of {len(seen) + len(unseen)}")
        return [f"{row.name}: a wrong tensor was not noticed" for row in unseen] or (
            [] if seen else ["nothing was run"]
        )
    return [f"{row.name}: {fault}" for row in rows for fault in row.faults]


def main() -> int:
    """Run what is asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "engines", help="environments and folds")
    parser.add_argument("--models", default="", help="names with commas between (default: all)")
    parser.add_argument("--variants", default="", help="variants with commas between (default: all)")
    parser.add_argument("--dtypes", default="", help="of files, with commas between (default: all)")
    parser.add_argument("--engines", default="", help="keys with commas between (default: all)")
    parser.add_argument("--smollm2", type=Path, help="its folder (default: made by eval/models/smollm2.py)")
    parser.add_argument("--page", type=Path, help="where to write the table")
    parser.add_argument("--install", action="store_true", help="make the environments that are missing")
    parser.add_argument("--again", action="store_true", help="judge what earlier runs recorded, and run nothing")
    parser.add_argument("--missing", action="store_true", help="run only what earlier runs have not recorded")
    parser.add_argument("--jobs", type=int, default=1, help="engines that run side by side; times then say little")
    parser.add_argument("--spoil", action="store_true", help="give the engines a wrong tensor, which must be noticed")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    engines = [engine for engine in ENGINES if not options.engines or engine.key in options.engines.split(",")]
    for engine in engines if options.install else ():
        make(engine, work)
    todo = cases(work, tuple(filter(None, options.models.split(","))))
    todo = [case for case in todo if not options.variants or case.variant in options.variants.split(",")]
    todo = [case for case in todo if not options.dtypes or case.dtype in options.dtypes.split(",")]
    if options.again:
        told = recorded(work / _REFERENCE)
        todo = [case for case in todo if case.name in told]
        found: Found = told, _tables(todo, work)
        answers = [recorded(_log(e, work, options.spoil)) or ready(e, work) or _UNASKED for e in engines]
        verdicts = {case.name: doctor(case.folder) for case in todo}
    else:
        _build_all(todo, options.smollm2 or work / "smollm2")
        verdicts = {case.name: doctor(case.folder) for case in todo}
        with ThreadPoolExecutor(options.jobs) as pool:
            first = pool.submit(references, todo, work)
            asking = partial(ask, todo=todo, work=work, spoil=options.spoil, missing=options.missing)
            answers = list(pool.map(asking, engines))
        found = first.result()
    _must_stand(todo, found[0])
    rows = [r for engine, a in zip(engines, answers, strict=True) for r in rows_of(engine, todo, a, verdicts, found)]
    (work / "rows.json").write_text(json.dumps([row.plain() for row in rows], indent=1))
    if options.page:
        asked = _asked(engines, work, options.spoil)
        options.page.write_text(page(rows, todo, engines, asked, machine_words(), _command(options)), encoding="utf-8")
    wrong = judge(rows, spoil=options.spoil)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def _build_all(todo: Sequence[Case], smollm2: Path) -> None:
    """Make the folders that do not stand; SystemExit where one cannot be."""
    if any(case.model.name == "smollm2" for case in todo) and not (smollm2 / "model.safetensors").exists():
        import subprocess

        subprocess.run([sys.executable, ROOT / "eval" / "models" / "smollm2.py", smollm2], check=True)
    for case in todo:
        error = build(case, smollm2)
        if error is not None:
            raise SystemExit(f"{case.name} could not be folded: {error}")


def _must_stand(todo: Sequence[Case], answers: Answers) -> None:
    for case in todo:
        if "error" in answers[case.name]:
            raise SystemExit(f"{case.name}: the newest transformers does not run it: {answers[case.name]['error']}")


def _command(options: argparse.Namespace) -> str:
    chosen = [f"--{name} {getattr(options, name)}" for name in ("models", "engines") if getattr(options, name)]
    chosen += [f"--jobs {options.jobs}"] * (options.jobs > 1)
    chosen += ["--again  # of answers that runs of single models and engines had recorded"] * options.again
    return " ".join(["python eval/engines/matrix.py --install --page eval/results/engines.md", *chosen])


if __name__ == "__main__":
    sys.exit(main())
