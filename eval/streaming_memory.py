"""Does the memory of a fold depend on the model's depth, or on its experts? Folds random sharded bf16 checkpoints.

    python eval/streaming_memory.py > eval/results/streaming_memory.md
    python eval/streaming_memory.py --layers 2 6 --hidden 1024 --intermediate 3584 --experts 8 32

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
        "bos_token_id": 1,
        "eos_token_id": 2,
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
    """Fold the toy, look at this process's memory, then fold ``source``: base, peak and planned bytes, seconds.

    The toy is reloaded through accelerate, so that its import is counted in the base; ``from_disk`` has ``source``
    reloaded so whatever its size.
    """
    import llmfold
    from llmfold.pipeline import verification
    from llmfold.pipeline.estimate import BASE_BYTES, memory_needed
    from llmfold.runtime.memory import anonymous_bytes

    limit, verification.IN_MEMORY_BYTES = verification.IN_MEMORY_BYTES, 0
    options = {"fidelity_tokens": 0, **options}  # what is measured afterwards is no part of the fold
    llmfold.fold(toy, output=output.with_name("toy-out"), quiet=True, **options)
    if not from_disk:
        verification.IN_MEMORY_BYTES = limit
    base = anonymous_bytes()
    start = time.perf_counter()
    report = llmfold.fold(source, output=output, quiet=True, **options)
    found = {"base": base, "peak": report.peak_memory_bytes, "seconds": time.perf_counter() - start}
    return {**found, "planned": memory_needed(llmfold.plan(source, **options)) - BASE_BYTES}


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


@dataclass(frozen=True)
class Case:
    """Models that differ in depth, or in experts, alone; folded by the same options."""

    layers: tuple[int, ...]
    hidden: int
    intermediate: int
    experts: tuple[int, ...] = (0,)
    options: dict[str, Any] = field(default_factory=lambda: {"method": "paper", "mlp_ratio": 0.25})

    def run(self, folder: Path) -> dict[tuple[int, int], dict[str, float]]:
        """What :func:`fold_here` finds, by experts and layers."""
        return {
            (experts, layers): measure(folder, layers, self.hidden, self.intermediate, self.options, experts=experts)
            for experts in self.experts
            for layers in self.layers
        }

    def table(self, results: dict[tuple[int, int], dict[str, float]]) -> str:
        """A section of the page in eval/results."""
        kind, check = ("Mixtral" if any(self.experts) else "Llama"), self.options.get("verify", "full")
        lines = [
            f"Random bf16 {kind}, hidden {self.hidden}, MLP {self.intermediate}, one shard per layer; options "
            f"{json.dumps(self.options)}; reload check: {check}.",
            "",
            "| experts | layers | a layer, MB | after a toy fold, MB | peak, MB | growth, MB | planned, MB | seconds |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for (experts, layers), found in results.items():
            size = layer_bytes(self.hidden, self.intermediate, experts)
            growth = found["peak"] - found["base"]
            sizes = (size, found["base"], found["peak"], growth, found["planned"])
            cells = [str(experts or "–"), str(layers), *(f"{each / 1e6:.0f}" for each in sizes)]
            lines.append(f"| {' | '.join(cells)} | {found['seconds']:.0f} |")
        return "\n".join(lines)


CASES = (
    Case((4, 12), 2048, 4096, options={"method": "paper", "mlp_ratio": 0.25, "attention_ratio": 0.25}),
    Case((2, 4), 1024, 2048, (8, 16), {"method": "paper", "mlp_ratio": 0.25, "verify": "shapes"}),
    Case((4,), 1024, 2048, (8, 16)),
)
"""What the page shows: depth, experts, and experts with the check that runs whole layers."""


def page(cases: Sequence[Case], folder: Path) -> str:
    """The Markdown page that goes into eval/results."""
    from llmfold.environment import versions

    lines = [
        "# Memory of a fold against the depth of the model and the number of its experts",
        "",
        f"`{' '.join(['python eval/streaming_memory.py', *sys.argv[1:]])}`",
        "",
        "Growth is the peak anonymous memory less what the process held after a toy fold; planned is what a plan says, "
        "less what it counts for Python and its libraries. Experts come a group at a time, so a fold takes no more "
        "where there are more of them; the full reload check runs the stock class, and transformers stacks the experts "
        "of a layer in float32 for it.",
        "",
        *(f"{case.table(case.run(folder))}\n" for case in cases),
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure every case, or that of the command line, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", help="depths (default: all cases of the page)")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=2048)
    parser.add_argument(
        "--experts", type=int, nargs="+", default=[0], help="a Mixtral with so many a layer; 0: a Llama"
    )
    parser.add_argument("--options", type=json.loads, help="JSON of the options of llmfold.fold")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made (default: a temporary folder)")
    arguments = parser.parse_args()
    cases: Sequence[Case] = CASES
    if arguments.layers:
        own = {} if arguments.options is None else {"options": arguments.options}
        sizes = (arguments.hidden, arguments.intermediate, tuple(arguments.experts))
        cases = [Case(tuple(arguments.layers), *sizes, **own)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(page(cases, Path(folder)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(fold_here(*map(Path, sys.argv[2:5]), **json.loads(sys.argv[5]))))
    else:
        main()
