"""Does the memory of a fold depend on the model's depth? Folds random sharded bf16 checkpoints of two depths.

    python eval/streaming_memory.py --layers 8 16 --hidden 3072 --intermediate 4096 > eval/results/streaming_memory.md
    python eval/streaming_memory.py --layers 2 6 --hidden 1024 --intermediate 3584 --experts 8

Each fold runs in a process of its own, with the full reload check. ``growth`` is the peak anonymous memory less what
the process held after folding a toy checkpoint, so that Python, torch and transformers are not counted.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HEAD_DIM = 128
VOCABULARY = 1024


def write_checkpoint(folder: Path, layers: int, hidden: int, intermediate: int, experts: int = 0) -> Path:
    """Write a random bf16 Llama with one shard per layer, or a Mixtral with so many experts a layer.

    All layers hold the same numbers, which costs nothing.
    """
    folder.mkdir(parents=True)
    heads = hidden // HEAD_DIM
    config = {
        "architectures": ["MixtralForCausalLM" if experts else "LlamaForCausalLM"],
        "model_type": "mixtral" if experts else "llama",
        **({"num_local_experts": experts, "num_experts_per_tok": 2} if experts else {}),
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).mul_(0.02).bfloat16()

    width = heads * HEAD_DIM
    layer = {
        "input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "self_attn.q_proj.weight": random(width, hidden),
        "self_attn.k_proj.weight": random(width, hidden),
        "self_attn.v_proj.weight": random(width, hidden),
        "self_attn.o_proj.weight": random(hidden, width),
        "post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        **_mlps(hidden, intermediate, experts, random),
    }
    shards = [{f"model.layers.{i}.{name}": t for name, t in layer.items()} for i in range(layers)]
    outside = {"model.embed_tokens.weight": random(VOCABULARY, hidden)}
    shards.append({**outside, "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)})
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _mlps(hidden: int, intermediate: int, experts: int, random: Callable[[int, int], Tensor]) -> dict[str, Tensor]:
    """An MLP under the names of Llama, or a router and its experts under those of Mixtral."""
    gate, up, down = (
        random(*size) for size in ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
    )
    if not experts:
        return {"mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up, "mlp.down_proj.weight": down}
    return {
        "block_sparse_moe.gate.weight": random(experts, hidden),
        **{
            f"block_sparse_moe.experts.{number}.{name}.weight": tensor.roll(number, 0)
            for number in range(experts)
            for name, tensor in (("w1", gate), ("w3", up), ("w2", down))
        },
    }


def layer_bytes(hidden: int, intermediate: int, experts: int = 0) -> int:
    """Bytes of one decoder layer."""
    width = hidden // HEAD_DIM * HEAD_DIM
    mlps = max(1, experts) * 3 * hidden * intermediate + experts * hidden
    return 2 * (4 * hidden * width + mlps + 2 * hidden)


def fold_here(
    source: Path, toy: Path, output: Path, options: dict[str, Any], *, from_disk: bool = False
) -> dict[str, float]:
    """Fold the toy, look at this process's memory, then fold ``source``: base and peak anonymous bytes, seconds.

    The toy is reloaded through accelerate, so that its import is counted in the base; ``from_disk`` has ``source``
    reloaded so whatever its size.
    """
    import llmfold
    from llmfold.pipeline import verification
    from llmfold.runtime.memory import anonymous_bytes

    limit, verification.IN_MEMORY_BYTES = verification.IN_MEMORY_BYTES, 0
    options = {"fidelity_tokens": 0, **options}  # what is measured afterwards is no part of the fold
    llmfold.fold(toy, output=output.with_name("toy-out"), quiet=True, **options)
    if not from_disk:
        verification.IN_MEMORY_BYTES = limit
    base = anonymous_bytes()
    start = time.perf_counter()
    report = llmfold.fold(source, output=output, quiet=True, **options)
    return {"base": base, "peak": report.peak_memory_bytes, "seconds": time.perf_counter() - start}


def measure(
    folder: Path,
    layers: int,
    hidden: int,
    intermediate: int,
    options: dict[str, Any],
    *,
    experts: int = 0,
    from_disk: bool = False,
) -> dict[str, float]:
    """Make a checkpoint inside ``folder``, fold it in a process of its own, and remove both; see ``fold_here``."""
    source = write_checkpoint(folder / f"model-{layers}", layers, hidden, intermediate, experts)
    toy = write_checkpoint(folder / f"toy-{layers}", 1, 2 * HEAD_DIM, 64, experts)
    settings = json.dumps({"options": options, "from_disk": from_disk})
    command = [sys.executable, __file__, "--child", str(source), str(toy), str(folder / "out"), settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for left in (source, toy, folder / "out", folder / "toy-out"):
        shutil.rmtree(left, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(arguments: argparse.Namespace, results: dict[int, dict[str, float]]) -> str:
    """The Markdown page that goes into eval/results."""
    from llmfold.environment import versions

    size = layer_bytes(arguments.hidden, arguments.intermediate, arguments.experts)
    kind = f"Mixtral of {arguments.experts} experts" if arguments.experts else "Llama"
    growth = {n: found["peak"] - found["base"] for n, found in results.items()}
    few, many = min(results), max(results)
    lines = [
        "# Memory of a fold against the depth of the model",
        "",
        f"`python eval/streaming_memory.py {' '.join(sys.argv[1:])}`",
        "",
        f"Random bf16 {kind}, hidden {arguments.hidden}, MLP {arguments.intermediate}, {size / 1e6:.0f} MB per layer, "
        f"one shard per layer; options {json.dumps(arguments.options)}; full reload check.",
        "",
        "| layers | checkpoint, MB | after a toy fold, MB | peak anonymous, MB | growth, MB | seconds |",
        "|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {n} | {n * size / 1e6:.0f} | {f['base'] / 1e6:.0f} | {f['peak'] / 1e6:.0f} | {growth[n] / 1e6:.0f} "
            f"| {f['seconds']:.0f} |"
            for n, f in sorted(results.items())
        ),
        "",
        f"Peak of {many} layers over peak of {few}: {results[many]['peak'] / results[few]['peak']:.3f}; "
        f"of the growth alone: {growth[many] / growth[few]:.3f}.",
        "",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure every depth and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--intermediate", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=0, help="a Mixtral with so many a layer (default: a Llama)")
    parser.add_argument(
        "--options",
        type=json.loads,
        default={"method": "paper", "mlp_ratio": 0.25, "attention_ratio": 1 / 3},
        help="JSON of the options of llmfold.fold",
    )
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = {
            n: measure(
                Path(folder), n, arguments.hidden, arguments.intermediate, arguments.options, experts=arguments.experts
            )
            for n in arguments.layers
        }
    print(table(arguments, results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(fold_here(*map(Path, sys.argv[2:5]), **json.loads(sys.argv[5]))))
    else:
        main()
