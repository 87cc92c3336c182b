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
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from agreement import compare
from calling import Answers, call
from cases import ROOT, Case, build, cases, tokenizer_ids
from environments import ENGINES, Engine, make, ready
from page import page
from rows import Row

from llmfold.engines import doctor
from llmfold.environment import machine_words

PAGE = ROOT / "eval" / "results" / "engines.md"
_PROMPT = "The history of the city begins with a small settlement on the river"
_MORE = ", which was founded in the twelfth century by traders"
_NEW = 64
_TEXTS = ["The history of the city", "  Two  spaces,\n\tand a tab: 3.14159", "Ünïcödé 漢字 🙂", "if x:\n    y = [0]\n"]


def job(case: Case, folder: Path, *, remote_code: bool, full: Path | None = None) -> dict[str, Any]:
    """What an engine is asked of a case; see runner.py."""
    prompt, ids = (tokenizer_ids(case.folder, text) for text in (_PROMPT, _PROMPT + _MORE))
    asked = {"prompt": prompt, "ids": ids, "new": _NEW, "texts": _TEXTS}
    where = {"name": case.name, "folder": str(folder), "remote_code": remote_code, "dtype": case.dtype}
    return {**where, **asked, **({"full": str(full)} if full else {})}


def references(todo: Sequence[Case], work: Path, log: Path) -> tuple[Answers, dict[str, np.ndarray]]:
    """Answers of the newest transformers, with eager attention and no cache, and its log-probabilities, by case."""
    tables = {case.name: work / f"reference-{number}.npy" for number, case in enumerate(todo)}
    asked = [job(case, case.folder, remote_code=_is_adaptive(case), full=tables[case.name]) for case in todo]
    answers = call(ENGINES[0], work, asked, log)
    return answers, {name: np.load(path) for name, path in tables.items() if path.exists()}


def spoiled(case: Case, place: Path) -> Path:
    """A copy of the folder of a case with one tensor doubled: what the middle layer's MLP adds."""
    from safetensors.torch import load_file, save_file

    copy = place / "spoiled" / case.folder.parent.name / case.folder.name
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


def run_engine(
    engine: Engine,
    todo: Sequence[Case],
    found: tuple[Answers, Mapping[str, np.ndarray]],
    places: tuple[Path, Path, Path],
    spoil: bool,
) -> list[Row]:
    """Rows of one engine."""
    environments, place, log = places
    why = ready(engine, environments)
    if why is not None:
        return [Row(case, engine, None, {"error": why}, None, skipped=True) for case in todo]
    verdicts = {case.name: doctor(case.folder)[engine.key] for case in todo}
    asked = [
        job(case, spoiled(case, place) if spoil else case.folder, remote_code=verdicts[case.name].flag is not None)
        for case in todo
    ]
    answers = call(engine, environments, asked, log)
    rows = []
    for case in todo:
        answer, agreement = answers[case.name], None
        if "error" not in answer:
            agreement = compare(answer, found[0][case.name], found[1][case.name], case.dtype)
        rows.append(Row(case, engine, verdicts[case.name], answer, agreement))
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
    parser.add_argument("--engines", default="", help="keys with commas between (default: all)")
    parser.add_argument("--smollm2", type=Path, help="its folder (default: made by eval/models/smollm2.py)")
    parser.add_argument("--page", type=Path, help="where to write the table")
    parser.add_argument("--install", action="store_true", help="make the environments that are missing")
    parser.add_argument("--jobs", type=int, default=1, help="engines that run side by side; times then say little")
    parser.add_argument("--spoil", action="store_true", help="give the engines a wrong tensor, which must be noticed")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    engines = [engine for engine in ENGINES if not options.engines or engine.key in options.engines.split(",")]
    for engine in engines if options.install else ():
        make(engine, work)
    todo = cases(work, tuple(filter(None, options.models.split(","))))
    todo = _built(todo, options.smollm2 or work / "smollm2")
    found = references(todo, work, work / "log-reference.txt")
    _must_stand(todo, found[0])

    def rows_of(engine: Engine) -> list[Row]:
        log = work / f"log-{engine.key}.txt"
        log.unlink(missing_ok=True)
        ran = run_engine(engine, todo, found, (work, work / engine.key, log), options.spoil)
        print(f"ran {engine.title}", flush=True)
        return ran

    with ThreadPoolExecutor(options.jobs) as pool:
        rows = [row for ran in pool.map(rows_of, engines) for row in ran]
    (work / "rows.json").write_text(json.dumps([row.plain() for row in rows], indent=1))
    if options.page:
        options.page.write_text(page(rows, todo, engines, machine_words(), _command(options)), encoding="utf-8")
    wrong = judge(rows, spoil=options.spoil)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def _built(todo: Sequence[Case], smollm2: Path) -> list[Case]:
    """The cases whose folders stand, made where they did not; SystemExit where one cannot be."""
    if any(case.model.name == "smollm2" for case in todo) and not (smollm2 / "model.safetensors").exists():
        import subprocess

        subprocess.run([sys.executable, ROOT / "eval" / "models" / "smollm2.py", smollm2], check=True)
    for case in todo:
        error = build(case, smollm2)
        if error is not None:
            raise SystemExit(f"{case.name} could not be folded: {error}")
    return list(todo)


def _must_stand(todo: Sequence[Case], answers: Answers) -> None:
    for case in todo:
        if "error" in answers[case.name]:
            raise SystemExit(f"{case.name}: the newest transformers does not run it: {answers[case.name]['error']}")


def _command(options: argparse.Namespace) -> str:
    chosen = [f"--{name} {getattr(options, name)}" for name in ("models", "engines") if getattr(options, name)]
    chosen += [f"--jobs {options.jobs}"] * (options.jobs > 1)
    return " ".join(["python eval/engines/matrix.py --install --page eval/results/engines.md", *chosen])


if __name__ == "__main__":
    sys.exit(main())
