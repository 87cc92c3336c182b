"""Folds quantised by the tools that people use: each in an environment of its own, perplexity before and after.

    python eval/engines/quantisers.py --text TEXT.txt --page eval/results/quantisers.md

The dense model that ships with llmfold, a fold of one width and a fold of widths by layer are given to every tool.
Those that calibrate get the text that the fold was measured on, which the dense model wrote. What a tool does not do
stands in the table with what it says.

A job of a runner has ``name`` and ``folder``, ``way`` and ``group`` (None: the tool's own), ``calibration`` and
``sequences`` (a file of tokens, how many of its rows), ``windows`` (a file of tokens to score). The answer has
``version`` and ``perplexity``, or ``error``.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from calling import Answers, call, recorded
from cases import DEMO, ROOT
from environments import Engine, make
from page import plain

import llmfold
from llmfold.data.texts import read_text
from llmfold.environment import machine_words, versions
from llmfold.evaluation.perplexity import Windows, text_windows

SEQUENCES = 32
"""Sequences of 256 tokens that are calibrated on."""
DENSE = "dense"
FOLDS: dict[str, dict[str, Any]] = {
    "folded, 384 of 512 neurons": {"mlp_ratio": 0.25, "attention_ratio": 0.0},
    "folded, widths by layer": {"layers": {"0-1": {"mlp": 0.125}, "2-3": {"mlp": 0.25}, "4-5": {"mlp": 0.375}}},
}
_QUICK = {"method": "self", "effort": "quick", "multiple_of": 64, "fidelity_tokens": 0, "quiet": True}
PLAIN = Engine("transformers", "as it is, in float32", "run_plain.py", seconds=600)
TOOLS = (
    Engine(
        "llm-compressor",
        "llm-compressor",
        "run_llm_compressor.py",
        ("llmcompressor==0.14.0.1",),
        over=True,
        seconds=900,
    ),
    Engine("gptqmodel", "GPTQModel", "run_gptqmodel.py", ("gptqmodel==7.7.0",), over=True, seconds=900),
    Engine("bitsandbytes", "bitsandbytes", "run_bitsandbytes.py", ("bitsandbytes==0.50.2",), over=True, seconds=600),
)
WAYS: dict[str, tuple[tuple[str, int | None], ...]] = {
    "transformers": (("", None),),
    "llm-compressor": (("rounding", 32), ("GPTQ", 32), ("GPTQ", 64), ("GPTQ", 128), ("AWQ", 32)),
    "gptqmodel": (("GPTQ", 32), ("GPTQ", 64)),
    "bitsandbytes": (("int8", None), ("nf4", None)),
}


def folders(work: Path) -> dict[str, Path]:
    """The models by what the page calls them; folds are made unless they stand."""
    found = {DENSE: DEMO}
    for number, (name, options) in enumerate(FOLDS.items()):
        found[name] = work / f"fold-{number}"
        if not (found[name] / "config.json").exists():
            llmfold.fold(str(DEMO), output=str(found[name]), **_QUICK, **options)
    return found


def jobs(tool: Engine, models: dict[str, Path], work: Path) -> list[dict[str, Any]]:
    """What a tool is asked; see the module."""
    calibration = next(folder for name, folder in models.items() if name != DENSE) / "llmfold_tokens.npy"
    files = {"calibration": str(calibration), "windows": str(work / "windows.npy"), "sequences": SEQUENCES}
    return [
        {"name": _key(name, way, group), "folder": str(folder), "way": way, "group": group, **files}
        for name, folder in models.items()
        for way, group in WAYS[tool.key]
    ]


def _key(model: str, way: str, group: int | None) -> str:
    return f"{model} | {way} | {group}"


def page_of(models: dict[str, Path], answers: dict[str, Answers], windows: Windows, command: str) -> str:
    """The table as Markdown."""
    lines = [
        "# Folds in quantisation tools",
        "",
        "Linear maps of the decoder in 4 bits (bitsandbytes: int8, or 4 bits of its own), symmetric, in groups along "
        "their inputs; embeddings and head as they are. GPTQ and AWQ are calibrated on "
        f"{SEQUENCES} sequences that the dense model wrote and the fold was measured on, so that no text is needed. "
        "What llm-compressor and GPTQModel write is read from the disk before it is scored, by GPTQModel in bfloat16. "
        "All of it runs on a CPU.",
        "",
        "| model | tool | way | group | perplexity |",
        "|---|---|---|---:|---:|",
    ]
    errors = {}
    for model in models:
        for tool in (PLAIN, *TOOLS):
            for way, group in WAYS[tool.key]:
                answer = answers[tool.key][_key(model, way, group)]
                if "error" in answer:
                    errors.setdefault(f"{tool.title}, {way}, groups of {group}: {answer['error']}", []).append(model)
                said = f"{answer['perplexity']:.2f}" if "perplexity" in answer else "not done"
                lines.append(f"| {model} | {tool.title} | {way} | {group or ''} | {said} |")
    if errors:
        lines += ["", "What the tools say of what they do not do:", ""]
        lines += [f"- {'; '.join(names)}: {plain(error)}" for error, names in errors.items()]
    tools = {t.title: next((a["version"] for a in answers[t.key].values() if "version" in a), "") for t in TOOLS}
    facts = ", ".join(f"{name} {number}" for name, number in {**versions(), **tools}.items())
    lines += ["", f"Folds by `--method self --effort quick`. {windows.protocol}. {facts}."]
    lines += [f"Machine: {machine_words()}.", "", "```bash", command, "```", ""]
    return "\n".join(lines)


def main() -> int:
    """Make the environments, fold, quantise, write the page; 1 where a tool did nothing at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantisers", help="environments and folds")
    parser.add_argument("--text", required=True, help="what perplexity is measured on")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = folders(work)
    windows = text_windows(DEMO, read_text(options.text), limit=options.windows)
    np.save(work / "windows.npy", windows.tokens.numpy())
    answers = {}
    for tool in (PLAIN, *TOOLS):
        make(tool, work)
        log = work / f"log-{tool.key}.txt"
        told = recorded(log)
        new = [job for job in jobs(tool, models, work) if job["name"] not in told]
        answers[tool.key] = {**told, **call(tool, work, new, log)}
        print(tool.title, json.dumps(answers[tool.key], indent=1), flush=True)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join(["python eval/engines/quantisers.py", *words])
    options.page.write_text(page_of(models, answers, windows, command), encoding="utf-8")
    return 0 if all(any("perplexity" in a for a in found.values()) for found in answers.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
