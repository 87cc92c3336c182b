"""Networks of real size: seconds to find what goes together, to plan and to fold, beside Torch-Pruning.

    python benchmarks/module_tracing.py --output eval/results/vision

Contenders take turns within one run, medians are told. Torch-Pruning (Fang et al., DepGraph, CVPR 2023) follows the
gradients of a forward pass and cuts in place; here ``torch.export`` is followed, every coupling is tried in float64,
and a narrower copy is made. Both remove the same fraction of channels by L2 norms. Folds are made once, at a fraction
of parameters: saved, loaded strictly into a module of the narrower shapes, and run.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from harness import command, once
from image_networks import NETWORKS, network
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import llmfold
from llmfold.environment import machine_words, versions
from llmfold.modules.narrow import tensors_of, with_tensors
from llmfold.modules.trace import couplings_of

RATIO = 0.3
FOLDS: dict[str, dict[str, Any]] = {"fold + AR": {}, "fold + statistics": {"repair": "statistics"}}
CPU = torch.device("cpu")
Calls = Mapping[str, Callable[[], object]]


def ours(module: nn.Module, example: Tensor) -> Calls:
    """What is timed of llmfold."""
    options: dict[str, Any] = {"ratio_of": "channels"}
    return {
        "trace": lambda: couplings_of(module, (example,)),
        "plan": lambda: llmfold.plan_module(module, (example,), RATIO, **options),
        "fold": lambda: llmfold.fold_module(module, (example,), RATIO, method="magnitude-l2", **options),
    }


def theirs(name: str, module: nn.Module, example: Tensor) -> Calls:
    """What is timed of Torch-Pruning."""
    import torch_pruning

    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]

    def trace() -> object:
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
        return list(graph.get_all_groups(ignored_layers=[last], root_module_types=[nn.Conv2d, nn.Linear]))

    def prune() -> object:
        fresh = network(name)  # it cuts in place; making one is timed and taken off
        kept = [part for part in fresh.modules() if isinstance(part, nn.Linear)][-1]
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        start = time.perf_counter()
        torch_pruning.pruner.MetaPruner(
            fresh, example, importance=importance, pruning_ratio=RATIO, ignored_layers=[kept]
        ).step()
        return time.perf_counter() - start

    return {"trace": trace, "fold": prune}


def timed(name: str, module: nn.Module, example: Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call by contender and what it does, in turns after one that warms up."""
    calls = {f"llmfold {what}": call for what, call in ours(module, example).items()}
    calls |= {f"Torch-Pruning {what}": call for what, call in theirs(name, module, example).items()}
    found: dict[str, list[float]] = {what: [] for what in calls}
    for turn in range(repeats + 1):
        for what, call in calls.items():
            seconds, result = once(call, CPU)
            if turn:
                found[what].append(result if isinstance(result, float) else seconds)
            print(f"{name} {what}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def folds(module: nn.Module, example: Tensor) -> dict[str, Any]:
    """Both kinds of fold: seconds, parameters, and whether a loaded one gives finite scores, the folded one's own."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, *example.shape[1:], generator=generator)
    found = {}
    for name, options in FOLDS.items():
        given = {**options, "inputs": inputs} if options else options
        seconds, folded = once(lambda o=given: llmfold.fold_module(module, (example,), RATIO, method="paper", **o), CPU)
        assert isinstance(folded, nn.Module)
        with tempfile.TemporaryDirectory() as folder:
            save_model(folded, f"{folder}/model.safetensors")
            loaded = with_tensors(folded, {k: torch.zeros_like(v) for k, v in tensors_of(folded).items()})
            load_model(loaded, f"{folder}/model.safetensors", strict=True)
        with torch.no_grad():
            wanted, scores = scores_of(folded, example), scores_of(loaded, example)
        found[name] = {
            "seconds": seconds,
            "parameters": sum(p.numel() for p in folded.parameters()),
            "finite": bool(scores.isfinite().all()),
            "same": torch.equal(scores, wanted),
        }
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def scores_of(module: nn.Module, example: Tensor) -> Tensor:
    """Class scores, of a module that gives these alone or among other things."""
    scores: Tensor = pytree.tree_leaves(module(example))[0]
    return scores


def main() -> None:
    """Measure, and write ``tracing.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--pixels", type=int, default=224, help="height and width of an image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder for tracing.json; standard output when left out")
    options = parser.parse_args()
    if importlib.util.find_spec("torch_pruning") is None:
        parser.error("Torch-Pruning is not installed: pip install torch-pruning")
    torch.set_num_threads(1)
    example = torch.randn(2, 3, options.pixels, options.pixels, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {}
    for name in options.networks:
        module = network(name)
        seconds = timed(name, module, example, options.repeats)
        plan = llmfold.plan_module(module, (example,), RATIO)
        found[name] = {
            "parameters": plan.before,
            "couplings": len(plan.couplings.found),
            "seconds": {what: statistics.median(times) for what, times in seconds.items()},
            "range": {what: [min(times), max(times)] for what, times in seconds.items()},
            "folds": folds(module, example),
        }
    about = {"pixels": options.pixels, "repeats": options.repeats, "ratio": RATIO, "command": command(sys.argv)}
    where = {"machine": machine_words(), "versions": versions("torch-pruning")}
    text = json.dumps({"networks": found, **about, **where}, indent=1) + "\n"
    if options.output is None:
        print(text, end="")
    else:
        (options.output / "tracing.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
