"""Is a fold in 8 bits better than the dense model in fewer, at equal bytes? Perplexities of both, quantised by torchao.

    python eval/after_folding.py MODEL --text TEXT.txt --page eval/results/after_folding.md

The dense model and its folds are rounded to every number of bits by torchao's ``IntxWeightOnlyConfig``, symmetric in
groups along the input of each linear map; embeddings and head stay as they are. Bytes are those of packed weights: bits
of every weight, and a scale of two bytes for every group. Needs torchao. A model whose weights come from a grid of few
bits is no fair test.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import llmfold
from llmfold.data.texts import read_text
from llmfold.demo import DEMO_NAME, demo_folder
from llmfold.environment import machine_words, versions
from llmfold.evaluation.perplexity import Windows, score, text_windows

BITS = (8, 7, 6, 5, 4, 3)
_SCALE_BYTES = 2
_PLAIN_BYTES = 2
"""Of a number that is not quantised: bfloat16."""


@dataclass(frozen=True)
class Point:
    """One model: what was folded away, bits of its linear maps (None: not quantised), bytes, perplexity."""

    fold: str
    bits: int | None
    bytes: int
    perplexity: float


def linear_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps of the decoder layers, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in name}


def packed_bytes(model: nn.Module, bits: int | None, group: int) -> int:
    """Bytes of a model whose linear maps have ``bits``, before it is quantised."""
    inside = sum(m.weight.numel() for m in linear_maps(model).values())
    total = sum(p.numel() for p in model.parameters())
    if bits is None:
        return total * _PLAIN_BYTES
    return (total - inside) * _PLAIN_BYTES + inside * bits // 8 + inside // group * _SCALE_BYTES


def quantise(model: nn.Module, bits: int, group: int) -> None:
    """Round the linear maps of a model to ``bits`` in place; ValueError where a width is no multiple of ``group``."""
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    odd = [name for name, m in linear_maps(model).items() if m.in_features % group]
    if odd:
        raise ValueError(f"the input of {odd[0]} is no multiple of {group}: fold with --multiple-of {group}")
    names = set(linear_maps(model))
    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(group))
    quantize_(model, config, filter_fn=lambda _, name: name in names)


def measure(folder: Path, fold: str, bits: int | None, group: int, windows: Windows) -> Point:
    """One point of the table."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    size = packed_bytes(model, bits, group)
    if bits is not None:
        quantise(model, bits, group)
    with torch.no_grad():
        found = score(model, windows)
    return Point(fold, bits, size, found.value)


def answers(points: list[Point]) -> list[str]:
    """For every fold in 8 bits and in 4, the dense perplexity at as many bytes, interpolated, and which is lower."""
    dense = sorted((p.bytes, p.perplexity) for p in points if p.fold == "dense" and p.bits)
    found = []
    for point in points:
        if point.fold == "dense" or point.bits not in (8, 4):
            continue
        pairs = pairwise(dense)
        between = next(((a, b) for a, b in pairs if a[0] <= point.bytes <= b[0]), None)
        if between is None:
            continue
        (low, worse), (high, better) = between
        share = (point.bytes - low) / (high - low)
        rival = worse * (better / worse) ** share
        verdict = "the fold" if point.perplexity < rival else "the dense model"
        found.append(
            f"- {point.fold} in {point.bits} bits: {point.perplexity:.2f} at {point.bytes:,} bytes; the dense model of "
            f"as many bytes, between two of its rows: {rival:.2f}. Better: **{verdict}**."
        )
    return found


def page(points: list[Point], windows: Windows, group: int, method: str, command: str) -> str:
    """The table as Markdown."""
    lines = [
        "# Folding and quantising",
        "",
        "Is a fold in 8 bits better than the dense model in fewer, at equal bytes? Linear maps of the decoder are "
        f"rounded by torchao (symmetric, groups of {group}); embeddings and head stay in bfloat16. Bytes are of packed "
        "weights with their scales.",
        "",
        "| model | bits | bytes | perplexity |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| {p.fold} | {p.bits or 'bfloat16'} | {p.bytes:,} | {p.perplexity:.2f} |" for p in points]
    facts = ", ".join(f"{name} {version}" for name, version in versions("torchao").items())
    lines += ["", *answers(points), "", f"Folds by `--method {method}`. {windows.protocol}; float32 sums. {facts}."]
    lines += [f"Machine: {machine_words()}.", "", "```bash", command, "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Fold, quantise, score, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, or 'demo'")
    parser.add_argument("--text", required=True, help="what perplexity is measured on")
    parser.add_argument("--ratios", default="0.1,0.2", help="of the decoder's parameters")
    parser.add_argument("--method", default="self")
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path("build/after_folding"))
    parser.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    source = demo_folder() if options.model == DEMO_NAME else Path(options.model)
    windows = text_windows(source, read_text(options.text), limit=options.windows)
    folders = {"dense": source}
    for ratio in options.ratios.split(","):
        folder = options.work / f"{source.name}-{options.method}-{ratio}"
        if not (folder / "config.json").exists():
            llmfold.fold(
                str(source), ratio=float(ratio), ratio_of="decoder", attention_ratio=0.0, multiple_of=options.group,
                method=options.method, effort=options.effort, output=str(folder), fidelity_tokens=0, quiet=True,
            )  # fmt: skip
        folders[f"folded, {float(ratio):.0%} of the decoder"] = folder
    points = []
    for fold, folder in folders.items():
        for bits in (None, *BITS):
            points.append(measure(folder, fold, bits, options.group, windows))
            print(points[-1], flush=True)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join(["python eval/after_folding.py", *words])
    options.page.write_text(page(points, windows, options.group, options.method, command), encoding="utf-8")
    options.page.with_suffix(".json").write_text(json.dumps([vars(point) for point in points], indent=1) + "\n")


if __name__ == "__main__":
    main()
