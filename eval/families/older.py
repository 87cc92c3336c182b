"""Load folds of tiny models of every type in an older transformers, beside their sources.

    python eval/families/older.py --work build/older --page eval/results/families-older.md    # all types that fold
    python eval/families/older.py --work build/older gemma2 mixtral                           # these alone, printed

A fold must do what its source does there: load strictly, and have the logits that the newest transformers computes.
The older one is that of ``eval/engines``, whose environment is made in the work folder unless ``--environments`` says
where it stands. Exit code 1 where a fold does not load or computes something else, and its source does not.
"""

import argparse
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from environments import ENGINES, Engine, make
from run import EXACT, SEED, amount_for, fold, known_rows, logits_of, name_beginning
from tiny import MODEL_TYPES, UNBUILDABLE, WRAPPERS, tiny_checkpoint

from llmfold.errors import LlmfoldError

RUNNER = Path(__file__).with_name("run_older.py")
OLDER = next(engine for engine in ENGINES if engine.key == "transformers-4.57")
SAME = "same logits"


@dataclass(frozen=True)
class Row:
    """What the older transformers makes of a type's source and of its fold, in words; empty where it has no class."""

    type: str
    source: str
    fold: str

    @property
    def wrong(self) -> bool:
        """Whether the fold fails where its source does not."""
        return self.source == SAME != self.fold


def rows_of(types: list[str], work: Path, engine: Engine, environments: Path) -> list[Row]:
    """Rows of some types; those that do not fold are left out."""
    logits: dict[str, torch.Tensor] = {}
    for name in types:
        source, output = work / name, work / f"{name}-folded"
        try:
            tiny_checkpoint(name, source, SEED)
            name_beginning(source)
            fold(source, output, method="paper", **amount_for(source))
        except LlmfoldError:
            continue
        logits[name], logits[output.name] = logits_of(source), logits_of(output)
    folders = [str(work / name) for name in logits]
    command = [str(engine.python(environments)), str(RUNNER), *folders]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    answers = {Path(each["folder"]).name: each for each in map(json.loads, told)}
    words = {name: _words(answers[name], work / name, logits[name]) for name in logits}
    for folder in folders:
        shutil.rmtree(folder)
    return [Row(name, words[name], words[f"{name}-folded"]) for name in types if name in words]


def _words(answer: dict[str, Any], folder: Path, wanted: torch.Tensor) -> str:
    """An answer in words, compared with the logits of the newest transformers."""
    if answer.get("absent"):
        return ""
    if "error" in answer:
        return str(answer["error"])[:200]
    found = torch.from_numpy(np.load(folder / "logits.npy"))
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    return SAME if difference <= EXACT else f"logits differ by {difference:.1g} of the largest"


def page(rows: list[Row], engine: Engine, command: str) -> str:
    """The table as Markdown."""
    there = [row for row in rows if row.source]
    equal = [row for row in there if row.fold == SAME]
    others = [row for row in there if row.fold != SAME]
    lines = [
        f"# Folds in {engine.title}",
        "",
        f"`{command}`, seed {SEED}: tiny random models, float32, folded with `paper` by a quarter of the decoder under"
        f" transformers {transformers.__version__}, torch {torch.__version__}, then loaded strictly in the older"
        f" release. Logits are the same where they differ by no more than {EXACT:g} of the largest.",
        "",
        f"Of the {len(rows)} types that fold, {len(there)} have a class there. **{len(equal)} folds load and have the"
        f" same logits.** {sum(row.wrong for row in rows)} do not although their source does.",
        "",
        "Same: " + ", ".join(row.type for row in equal) + ".",
        "",
        "| type | its source there | its fold there |",
        "|---|---|---|",
        *(f"| {row.type} | {row.source} | {row.fold} |" for row in others),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all if none is given")
    parser.add_argument("--work", type=Path, required=True, help="folder for tiny models, and for what is known")
    parser.add_argument("--environments", type=Path, help="where environments of engines stand (default: WORK)")
    parser.add_argument("--page", type=Path, help="where the table goes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    environments = (options.environments or work).resolve()
    make(OLDER, environments)
    known = known_rows(work / "rows.jsonl", Row)
    every = [name for name in (*MODEL_TYPES, *WRAPPERS) if name not in UNBUILDABLE]
    types = options.types or [name for name in every if name not in known]
    with (work / "rows.jsonl").open("a", encoding="utf-8") as lines:
        for start in range(0, len(types), 8):  # a process of the older release takes seconds to start
            for row in rows_of(types[start : start + 8], work, OLDER, environments):
                known[row.type] = row
                lines.write(json.dumps(asdict(row)) + "\n")
                lines.flush()
                print(f"{row.type:28} {row.source or 'no class there'}; fold: {row.fold or '-'}", flush=True)
    if options.page:
        ordered = [known[name] for name in sorted(known)]
        command = "python eval/families/older.py --work build/older --page eval/results/families-older.md"
        options.page.write_text(page(ordered, OLDER, command), encoding="utf-8")
    return int(any(row.wrong for row in known.values()))


if __name__ == "__main__":
    sys.exit(main())
