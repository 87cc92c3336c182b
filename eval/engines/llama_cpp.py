"""Run exported GGUF files in llama.cpp (package xllamacpp) and compare with transformers, token by token.

    python eval/engines/llama_cpp.py --work build/gguf --smollm2 FOLDER --page eval/results/gguf.md

llama.cpp's server gives log-probabilities, not logits: of all tokens, by ``n_probs``. They are logits up to a constant.
Exits with 1 if a float32 file differs by more than its tolerance, writes other text, or reads text as other tokens; or
if a file with one tensor upside down is not noticed. What was measured is kept in ``--work``, and a run that was
stopped goes on. Needs gguf and xllamacpp; without --smollm2, or LLMFOLD_DATA,
these models are left out.
"""

import argparse
import json
import os
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf_models import Case, cases
from transformers import AutoModelForCausalLM

from llmfold.checkpoint import Checkpoint
from llmfold.data.tokenizer import load_tokenizer
from llmfold.environment import machine_words, versions
from llmfold.evaluation.llama_cpp import LlamaCpp, llama_cpp
from llmfold.export.options import ExportSettings
from llmfold.export.pre_tokenizer import known_names
from llmfold.export.writer import export_gguf

PROMPTS = (
    "Once upon a time there was a little dog who",
    "The history of the town began in 1850, when it wasn't yet a city;",
    "In 1914 the river flooded the whole valley, and the people",
)
TEXTS = (
    *PROMPTS,
    "  two spaces,\ttab,\n\nnew lines\n and 12345 3.14 it's we'll I'VE",
    "naïve café — “quotes” … 東京 and кириллица 🙂",
    "x=1;if(x>0){y[0]+=2**10;}//comment",
)
LIKELIEST, NEW, CONTEXT = 20, 64, 256
PATIENCE = 20
"""Seconds that a tokenizer may take to read all texts."""
BROKEN = "blk.1.ffn_down.weight"
"""The tensor whose rows are put upside down in a copy, which must be noticed."""


@dataclass(frozen=True)
class Found:
    """What a file gives.

    Attributes:
        widest: largest difference of log-probabilities over all tokens and prompts.
        top: mean difference over those that transformers finds likeliest.
        written: tokens written greedily, all prompts together.
        same: how many of these are transformers', up to the first that differs in each prompt.
    """

    widest: float
    top: float
    written: int
    same: int


class Reference:
    """The model in transformers, in float32."""

    def __init__(self, folder: Path) -> None:
        code = "auto_map" in Checkpoint.open(folder).config
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=code)
        self.model, self.tokenizer = model.eval(), load_tokenizer(folder)
        self.prompts = [self.tokenizer(text).input_ids for text in PROMPTS]
        with torch.inference_mode():
            self.answers = [self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for ids in self.prompts]
            self.texts = [self._greedy(ids) for ids in self.prompts]

    def _greedy(self, ids: list[int]) -> list[int]:
        options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "use_cache": True}
        written: list[int] = self.model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        return written


def compare(reference: Reference, engine: LlamaCpp) -> Found:
    """Ask llama.cpp what transformers was asked."""
    widest, top, written, same = 0.0, [], 0, 0
    for ids, expected, text in zip(reference.prompts, reference.answers, reference.texts, strict=True):
        difference = (torch.tensor(engine.log_probabilities(ids)) - expected).abs()
        widest = max(widest, float(difference.max()))
        top.append(float(difference[expected.topk(LIKELIEST).indices].mean()))
        ours = engine.greedy(ids, NEW)
        length = min(len(ours), len(text))  # either side may stop at a token that ends the text
        written += length
        same += next((i for i in range(length) if ours[i] != text[i]), length)
    return Found(widest, sum(top) / len(top), written, same)


def misread(case: Case, reference: Reference, engine: LlamaCpp) -> list[str]:
    """Texts that llama.cpp reads as other tokens than the checkpoint's tokenizer does."""
    return [text for text in case.texts if engine.tokens(text) != reference.tokenizer(text).input_ids]


def upside_down(path: Path, name: str) -> None:
    """Reverse the rows of a tensor in a file."""
    tensor = next(each for each in gguf.GGUFReader(path, "r+").tensors if each.name == name)
    tensor.data[:] = tensor.data[::-1].copy()


def holds(found: Found, tolerance: float) -> bool:
    """Whether a float32 file computes what transformers does."""
    return found.widest <= tolerance and found.same == found.written


def measure(case: Case, work: Path) -> tuple[list[str], bool]:
    """Rows of a model for the page, and whether all that must hold of it does."""
    reference = Reference(case.folder)
    rows, good = [], True
    for kind in case.types:
        path = work / f"{case.folder.name}-{kind}.gguf"
        done = export_gguf(ExportSettings(str(case.folder), str(path), type=kind, pre=case.pre, overwrite=True), print)
        with llama_cpp(path, CONTEXT, torch.get_num_threads(), exact=kind == "f32") as engine:
            found = compare(reference, engine)
            wrong = misread(case, reference, engine)
        if kind == "f32":
            good = holds(found, case.tolerance) and not wrong
        read = f"{len(case.texts) - len(wrong)} of {len(case.texts)}" if case.texts else "–"
        label = f"{case.label} | {done.architecture} | {done.pre}" if kind == case.types[0] else " | | "
        rows.append(
            f"| {label} | {kind} | {path.stat().st_size / 1e6:.1f} | {found.widest:.1e} | {found.top:.1e} | "
            f"{found.same} of {found.written} | {read} |"
        )
        print(rows[-1], flush=True)
        path.unlink()
    return rows, good


def broken(case: Case, work: Path) -> tuple[Found, bool]:
    """What a file with a wrong tensor gives, and whether it is told from a right one."""
    path = work / "broken.gguf"
    export_gguf(ExportSettings(str(case.folder), str(path), type="f32", pre=case.pre, overwrite=True), print)
    upside_down(path, BROKEN)
    with llama_cpp(path, CONTEXT, torch.get_num_threads(), exact=True) as engine:
        found = compare(Reference(case.folder), engine)
    path.unlink()
    return found, not holds(found, case.tolerance)


def names_that_agree(case: Case, work: Path) -> list[str]:
    """Pre-tokenizers of llama.cpp that read all texts as the checkpoint's tokenizer does."""
    tokenizer, path, found = load_tokenizer(case.folder), work / "pre.gguf", []
    expected = [tokenizer(text).input_ids for text in TEXTS]
    for name in known_names():
        export_gguf(ExportSettings(str(case.folder), str(path), pre=name, overwrite=True), lambda _: None)
        # Names that want other tokens than these can crash llama.cpp, or leave it waiting.
        judge = get_context("fork").Process(target=_judge, args=(path, expected))
        judge.start()
        judge.join(PATIENCE)
        judge.kill()
        judge.join()
        found += [name] if judge.exitcode == 0 else []
    path.unlink()
    return found


def _judge(path: Path, expected: list[list[int]]) -> None:
    """Exit with 0 if a file's tokenizer gives what is expected."""
    with llama_cpp(path, CONTEXT, 1) as engine:
        same = all(engine.tokens(text) == ids for text, ids in zip(TEXTS, expected, strict=True))
        os._exit(0 if same else 1)


def page(rows: list[str], wrong: Found, names: list[str], command: str) -> str:
    """The results as Markdown."""
    where = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"""# Exported files in llama.cpp

Checkpoints written by `llmfold export gguf` and run by llama.cpp, beside the same checkpoints in transformers in
float32. Folds are by `magnitude`, the quickest method: what is asked is whether both engines compute the same, not how
good a fold is. Random models have every parameter drawn, and wiki-llama's tokenizer.

- **widest**: largest difference of log-probabilities (nats) of the next token, over the whole vocabulary and
  {len(PROMPTS)} prompts. The server of llama.cpp gives log-probabilities of all tokens (`n_probs`), which are logits up
  to a constant. It must be at most 1e-3 for f32 files (1e-2 for gemma, whose activation llama.cpp reads from a table in
  half precision).
- **top {LIKELIEST}**: mean difference over the {LIKELIEST} tokens that transformers finds likeliest.
- **greedy**: tokens written greedily that are transformers', up to the first that is not, of {NEW} a prompt or up to
  the end of the text. All must be, for f32 files.
- **texts**: of {len(TEXTS)} texts with digits, contractions, blanks, other scripts and code, those that llama.cpp reads
  as the same tokens. All must be.

f32 files keep keys and values in float32; the others run with llama.cpp's defaults, which round these, and the inputs
of every product, too. Likeliest tokens of random models lie close together, so that their texts part early.

| model | architecture | pre-tokenizer | type | MB | widest | top {LIKELIEST} | greedy | texts |
|---|---|---|---|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

A file whose tensor `{BROKEN}` has its rows upside down: widest {wrong.widest:.1e}, greedy
{wrong.same} of {wrong.written}; noticed.

llama.cpp recognises tokenizers by the ids that they make of one text, so it knows none that was trained anew.
wiki-llama's is such a one. Of the {len(known_names())} names that llama.cpp has, these read the {len(TEXTS)} texts as
its tokenizer does: {", ".join(f"`{name}`" for name in names)}. Its rules are
GPT-2's, and `--pre gpt-2` is what the refusal recommends.

Command: `{command}`

{machine_words()}, shared with other work; {where}, gguf {version("gguf")}, xllamacpp {version("xllamacpp")}.
"""


def main() -> int:
    """Compare all models, write the page; returns 1 if something that must hold does not."""
    parser = argparse.ArgumentParser(description="Exported GGUF files in llama.cpp, beside transformers.")
    parser.add_argument("--work", type=Path, required=True, help="folder for folds and files")
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--page", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = os.environ.get("LLMFOLD_DATA")
    rows, failed, first, kept = [], [], None, arguments.work / "measured.json"
    saved = json.loads(kept.read_text()) if kept.exists() else {}
    for case in cases(arguments.work, Path(data) if data else None, arguments.smollm2, TEXTS):
        first = first or case
        if case.label not in saved:
            saved[case.label] = measure(case, arguments.work)
            kept.write_text(json.dumps(saved))
        made, good = saved[case.label]
        rows += made
        failed += [] if good else [case.label]
    assert first is not None
    wrong, noticed = broken(first, arguments.work)
    failed += [] if noticed else [f"{first.label} with a wrong tensor"]
    print(f"with a wrong tensor: {wrong}")
    if arguments.page:
        words = ["python", "eval/engines/llama_cpp.py", "--work", arguments.work.name]
        words += ["--smollm2", "FOLDER"] if arguments.smollm2 else []
        words += ["--page", "eval/results/gguf.md"]
        arguments.page.write_text(page(rows, wrong, names_that_agree(first, arguments.work), shlex.join(words)))
    print(f"not as it must be: {', '.join(failed)}" if failed else "all is as it must be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
