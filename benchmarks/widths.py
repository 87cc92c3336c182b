"""What MLP widths cost engines: multiples of 256, 128, 64, 32, 8 and none, beside each other.

    python benchmarks/widths.py --output results
    python benchmarks/widths.py --engine llama.cpp --dtype q8_0 --output results

One MLP (gate, up, down) of a layer ``--hidden`` wide is timed at widths around ``--width``. Each time is given per
neuron, over that of the widths that divide by 256: 1.00 is as fast, 1.10 costs a tenth more than its size says.
Contenders take turns, the fastest of a few calls counts, and medians are taken of the ratios within a turn, so that
other work on the machine falls on all.

For torch these are products of matrices, of one token and of ``--tokens``. For llama.cpp they are whole models of
random weights with two layers, exported, a token written and a token read. On a CPU seconds are those of the processor.
"""

import argparse
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from llmfold.environment import machine_words, versions

GRAINS = (256, 128, 64, 32, 8, 1)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STEPS = {256: (0, 256), 128: (128,), 64: (64, 192), 32: (96, 160), 8: (104, 152), 1: (101, 155)}
"""Widths of a grain, over a multiple of 256; all of one mean, so that what does not grow with the width is no odds."""
_TRIES = 3
"""Calls of which the fastest counts: what else the machine does only adds to a time."""
_LAYERS, _VOCABULARY, _WRITTEN = 2, 4096, 16
Call = Callable[[], tuple[float, float]]
"""Seconds of one token, and of many, in a model or a part of one."""


def widths_of(grain: int, width: int) -> list[int]:
    """Widths near ``width`` that divide by a grain, and by no larger one of the table."""
    base = width // 256 * 256
    return [base + step for step in _STEPS[grain]]


def torch_call(width: int, options: argparse.Namespace) -> Call:
    """A gated MLP on one token, and on many."""
    generator = torch.Generator().manual_seed(options.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DTYPES[options.dtype]).to(options.device)

    hidden = options.hidden
    gate, up, down = draw(width, hidden), draw(width, hidden), draw(hidden, width)
    inputs = draw(1, hidden), draw(options.tokens, hidden)

    # Processor seconds, where there are any: what else the machine does takes no part in them.
    clock = time.process_time if options.device == "cpu" else time.perf_counter

    def seconds(x: Tensor) -> float:
        begin = clock()
        torch.nn.functional.linear(torch.nn.functional.silu(x @ gate.T) * (x @ up.T), down)
        if x.is_cuda:
            torch.cuda.synchronize()
        return clock() - begin

    return lambda: (seconds(inputs[0]), seconds(inputs[1]))


def llama_cpp_call(stack: ExitStack, width: int, options: argparse.Namespace) -> Call:
    """A small model in llama.cpp, a token written and a token read."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmfold.demo import demo_folder
    from llmfold.evaluation.llama_cpp import llama_cpp
    from llmfold.export.options import ExportSettings
    from llmfold.export.writer import export_gguf

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=width,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder() / name, folder / "model")
    kind = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}.get(options.dtype, options.dtype)
    file = folder / "model.gguf"
    export_gguf(ExportSettings(str(folder / "model"), str(file), type=kind, pre="gpt-2"), lambda _: None)
    engine = stack.enter_context(llama_cpp(file, options.tokens + 32, torch.get_num_threads()))
    prompt = [1] * options.tokens

    def seconds() -> tuple[float, float]:
        begin = time.process_time()
        engine.speeds(prompt, 1)
        middle = time.process_time()
        engine.speeds(prompt[:1], _WRITTEN)
        return (time.process_time() - middle) / _WRITTEN, (middle - begin) / options.tokens

    return seconds


def measure(options: argparse.Namespace) -> dict[str, dict[int, list[float]]]:
    """Costs per neuron by what is done and grain, one for each turn, over those of the grain 256."""
    whats = ("one token", f"{options.tokens} tokens")
    found: dict[str, dict[int, list[float]]] = {what: {grain: [] for grain in GRAINS} for what in whats}
    with ExitStack() as stack:
        calls: dict[int, dict[int, Call]] = {}
        for grain in GRAINS:
            calls[grain] = {
                width: torch_call(width, options)
                if options.engine == "torch"
                else llama_cpp_call(stack, width, options)
                for width in widths_of(grain, options.width)
            }
        for turn in range(options.repeats + 1):
            costs = {grain: _costs(of_grain) for grain, of_grain in calls.items()}
            for part, what in enumerate(whats):
                for grain in GRAINS if turn else ():  # the first turn is slower than all that follow
                    found[what][grain].append(costs[grain][part] / costs[GRAINS[0]][part])
    return found


def _costs(calls: dict[int, Call]) -> tuple[float, float]:
    """Seconds per neuron of one token and of many, mean over widths, the fastest of a few tries of each."""
    fastest = [
        [min(tries) / width for tries in zip(*(call() for _ in range(_TRIES)), strict=True)]
        for width, call in calls.items()
    ]
    one, many = (statistics.mean(costs) for costs in zip(*fastest, strict=True))
    return one, many


def table(found: dict[str, dict[int, list[float]]], options: argparse.Namespace, command: str) -> str:
    """The results as Markdown."""
    heading = " | ".join(f"{what}: median | middle half" for what in found)
    rows = []
    for grain in GRAINS:
        cells = []
        for what in found:
            low, middle, high = statistics.quantiles(found[what][grain], n=4)
            cells.append(f"{middle:.3f} | {low:.3f}–{high:.3f}")
        widths = ", ".join(map(str, widths_of(grain, options.width)))
        rows.append(f"| {grain} | {widths} | {' | '.join(cells)} |")
    where = ", ".join(f"{name} {number}" for name, number in versions("xllamacpp", "gguf").items())
    turns = f"medians of {options.repeats} turns"
    return f"""# Widths of an MLP in {options.engine}, {options.dtype}

Cost per neuron over that of widths that divide by 256, hidden size {options.hidden}; {turns}.

| divides by | widths | {heading} |
|---|---|{"---:|---|" * len(found)}
{chr(10).join(rows)}

Command: `{command}`

{machine_words()}, shared with other work; {where}.
"""


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("torch", "llama.cpp"), default="torch")
    parser.add_argument("--dtype", choices=(*DTYPES, "q8_0"), default="float32")
    parser.add_argument("--device", default="cpu", help="for torch")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2560)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9, help="turns, at least 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the table; standard output when left out")
    options = parser.parse_args()
    words = ["python", "benchmarks/widths.py", *sys.argv[1:]]
    text = table(measure(options), options, shlex.join(words))
    if options.output is None:
        print(text)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    name = f"widths-{options.engine.replace('.', '-')}-{options.dtype}-{options.device}.md"
    (options.output / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
