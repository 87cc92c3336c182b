"""The page of the matrix, made of its rows alone."""

from collections.abc import Mapping, Sequence

from agreement import MEAN_TOLERANCE, TOLERANCE
from cases import DENSE, DTYPES, Case
from environments import Engine
from rows import Row
from runner import TIE

from llmfold.engines.llama_cpp_rules import EXPORT

_ABOUT = """# Folds in other engines

Made by a script that installs each engine in an environment of its own, folds the models, and runs every folder in
every engine. Loading is not all: log-probabilities of the 20 likeliest tokens at every position of a text must agree
with those of transformers 5.23.0 run in the plainest way (eager attention, one pass), and 64 greedy tokens must be
equal where the files are float32, up to one that is as likely as another (within {tie:g} nats). Allowed are {large32:g}
and, in bfloat16, {large16:g} nats for the largest difference, {mean32:g} and {mean16:g} for the mean (SmolLM2: ten
times these and, in bfloat16, twice, since rounding leaves more of its large activations); where an engine tells the
log-probabilities of all tokens that follow, these too. In bfloat16 rounding sends a token of the mixture to another
expert now and then, after which nothing agrees there: its mean is that of the middle position, and its largest
difference is not judged. A tokenizer must read four texts alike, but for the random
Qwen2, which has one of another family. In every row `llmfold doctor` must have said what happened.

Tokens a second are of greedy text, one sequence, beside the dense model's in the same run; the machine was shared
with other work, so that ratios near one say nothing. Folds are quick ones that remove little: they show that folders
load, not how good a fold is. None removes whole blocks, as `--depth` does; a source that has lost one is folded
here. llama.cpp reads files that `llmfold export gguf` writes of the folders.
"""
_UNASKED = """Rows that say "not run" were not asked in the runs that this page is of: what doctor says of them is not
checked.
"""


def page(
    rows: Sequence[Row],
    todo: Sequence[Case],
    engines: Sequence[Engine],
    asked: Mapping[str, str],
    machine: str,
    command: str,
) -> str:
    """The page as Markdown; ``asked`` tells by keys of engines when each was asked, and how long."""
    parts = [
        _ABOUT.format(
            tie=TIE,
            large32=TOLERANCE["float32"],
            large16=TOLERANCE["bfloat16"],
            mean32=MEAN_TOLERANCE["float32"],
            mean16=MEAN_TOLERANCE["bfloat16"],
        ),
        *([_UNASKED] if any(row.skipped for row in rows) else []),
        "## What loads\n",
        *_overview(rows, todo, engines),
    ]
    for engine in engines:
        parts += ["", f"## {engine.title}\n", *_engine(engine, [row for row in rows if row.engine == engine])]
        parts += ["", asked[engine.key]] if engine.key in asked else []
    parts += ["", f"Machine: {machine}.", "", "```bash", command, "```", ""]
    return "\n".join(parts)


def _overview(rows: Sequence[Row], todo: Sequence[Case], engines: Sequence[Engine]) -> list[str]:
    found = {(row.engine.key, row.case.name): row for row in rows}
    lines = [_line("model", "variant", *(engine.title for engine in engines)), _line(*["---"] * (2 + len(engines)))]
    for case in todo:
        if case.dtype != DTYPES[0]:
            continue
        both = [other for other in todo if (other.model, other.variant) == (case.model, case.variant)]
        cells = [_both([found[engine.key, one.name] for one in both]) for engine in engines]
        lines.append(_line(case.model.about, case.variant, *cells))
    return lines


def _both(rows: Sequence[Row]) -> str:
    """One cell for the dtypes of a folder."""
    words = dict.fromkeys(_word(row) for row in rows)
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(f"{_word(row)} ({row.case.dtype})" for row in rows)


def _word(row: Row) -> str:
    if row.skipped:
        return "not run"
    if row.loads and row.agreement and row.agreement.faults:
        return "**differs**"
    if row.loads and row.verdict and row.verdict.flag:
        return "yes, exported" if row.verdict.flag.startswith(EXPORT) else "yes, with its flag"
    return "yes" if row.loads else "no"


def _engine(engine: Engine, rows: Sequence[Row]) -> list[str]:
    if all(row.skipped for row in rows):
        return [f"Not run: {rows[0].answer['error']}."]
    head = ("model", "variant", "files", "largest", "mean", "greedy equal", "tokens/s", "of dense", "doctor")
    lines = [_line(*head), _line("---", "---", "---", "---:", "---:", "---:", "---:", "---:", "---")]
    speeds = {(row.case.model.name, row.case.dtype): _speed(row) for row in rows if row.case.variant == DENSE}
    for row in rows:
        lines.append(_line(row.case.model.name, row.case.variant, row.case.dtype, *_cells(row, speeds)))
    reasons = dict.fromkeys(
        f"{row.case.model.name}, {row.case.variant}, {row.case.dtype}: {plain(row.answer['error'])}"
        for row in rows
        if not row.loads and not row.skipped
    )
    faults = [f"{row.case.name}: {plain(fault)}" for row in rows for fault in (row.agreement or row).faults]
    if reasons:
        lines += ["", "What the engine says of those that it does not load:", "", *(f"- {each}" for each in reasons)]
    if faults:
        lines += ["", "Beyond tolerance:", "", *(f"- {each}" for each in dict.fromkeys(faults))]
    return lines


def _cells(row: Row, speeds: dict[tuple[str, str], float | None]) -> tuple[str, ...]:
    said = _said(row)
    if row.agreement is None:
        return ("not run" if row.skipped else "does not load", "", "", "", "", said)
    speed, dense = _speed(row), speeds.get((row.case.model.name, row.case.dtype))
    ratio = f"{speed / dense:.2f}" if speed and dense else ""
    found = row.agreement
    greedy = f"{found.same} of {found.of}{', then a tie' * found.tie}"
    return (f"{found.largest:.1e}", f"{found.mean:.1e}", greedy, f"{speed:.0f}" if speed else "", ratio, said)


def _said(row: Row) -> str:
    """What doctor says, in short."""
    if row.verdict is None:
        return ""
    if not row.verdict.loads:
        return f"no: {plain(row.verdict.why)}"
    flag = f"with {row.verdict.flag}" if row.verdict.flag else "loads"
    return flag if row.verdict.agrees else f"{flag}, wrongly: {plain(row.verdict.why)}"


def _speed(row: Row) -> float | None:
    seconds = row.answer.get("seconds")
    return len(row.answer["greedy"]) / seconds if seconds else None


def plain(text: str) -> str:
    """A text that can stand in a table."""
    return text.replace("|", "/").replace("<", "‹").replace(">", "›")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
