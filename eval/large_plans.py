"""Plans of models of today's sizes, by their configs alone: nothing of them is downloaded.

    python eval/large_plans.py --page eval/results/large_plans.md

Configs are those of transformers' classes with the published sizes. Hours are estimates by the machine's own rates, and
by those of an H100 as its data sheet has them.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

import llmfold
from llmfold.pipeline.estimate import disk_needed, estimate, memory_needed, whole_cost
from llmfold.planning.cost import Rates

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3.1-405B": (
        "llama",
        {
            **{"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
            **{"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072},
        },
    ),
    "DeepSeek-V3": ("deepseek_v3", {}),
    "Kimi-K2": (
        "deepseek_v3",
        {
            **{
                "num_attention_heads": 64,
                "num_key_value_heads": 64,
                "n_routed_experts": 384,
                "first_k_dense_replace": 1,
            },
            **{"vocab_size": 163840, "n_group": 1, "topk_group": 1},
        },
    ),
    "gpt-oss-120b": ("gpt_oss", {}),
    "Qwen3-235B-A22B": (
        "qwen3_moe",
        {
            **{"hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4},
            **{"moe_intermediate_size": 1536, "num_experts": 128, "vocab_size": 151936, "head_dim": 128},
        },
    ),
    "Mixtral-8x7B": ("mixtral", {}),
    "Mixtral-8x22B": (
        "mixtral",
        {
            **{"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56, "num_attention_heads": 48},
            **{"num_key_value_heads": 8, "vocab_size": 32768},
        },
    ),
}
H100 = Rates(large=4e14, skinny=4e14, double=3e13, memory=2.5e12, disk=3e9)
"""Half of the data sheet's dense bf16 and float64 tensor-core rates, three quarters of its memory's, a good disk's."""


def row(name: str, method: str) -> str:
    """A line of the table."""
    model_type, sizes = MODELS[name]
    config = CONFIG_MAPPING[model_type](**sizes, dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        raw = {**json.loads(config.to_json_string(use_diff=False)), "dtype": "bfloat16"}
        (Path(folder) / "config.json").write_text(json.dumps(raw), encoding="utf-8")
        start = time.perf_counter()
        plan = llmfold.plan(folder, ratio=0.2, method=method)
        seconds = time.perf_counter() - start
    widths = dict.fromkeys(
        (a.intermediate, b.intermediate) for a, b in zip(plan.before.layers, plan.after.layers, strict=True)
    )
    heads = dict.fromkeys((a.heads, b.heads) for a, b in zip(plan.before.layers, plan.after.layers, strict=True))
    hours = sum(estimate(plan).stages.values()) / 3600
    gpu = sum(map(H100.seconds, whole_cost(plan).stages)) / 3600
    return (
        f"| {name} | {method} | {plan.parameters_before / 1e9:,.0f} | {_pairs(widths)} | {_pairs(heads)} "
        f"| {plan.bytes_before / 1e9:,.0f} → {plan.bytes_after / 1e9:,.0f} | {memory_needed(plan) / 1e9:,.0f} "
        f"| {disk_needed(plan) / 1e9:,.0f} | {hours:,.1f} | {gpu:,.1f} | {seconds:.0f} |"
    )


def _pairs(pairs: Any) -> str:
    return ", ".join(f"{a} → {b}" if a != b else f"{a}" for a, b in pairs)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="where the table goes; printed if not given")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args(arguments)
    lines = [
        "# Plans of large models, by their configs alone",
        "",
        f"`python eval/large_plans.py`; ratio 0.2, transformers {version('transformers')}. Widths of all kinds of"
        " layers; gigabytes of memory and disk that a fold takes beside the source; hours by this machine's rates and"
        " by an H100's data sheet; seconds that the plan took.",
        "",
        "| model | method | 10⁹ parameters | neurons | heads | GB | memory | disk | hours here | H100 | plan (s) |",
        "|---|---|---:|---|---|---:|---:|---:|---:|---:|---:|",
        *(row(name, method) for name in options.models for method in ("paper", "self")),
    ]
    text = "\n".join(lines) + "\n"
    if options.page:
        options.page.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
