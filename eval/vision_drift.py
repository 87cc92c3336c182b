"""Why Fold-AR collapses: what is left of variances, of one coupling alone and of all, and what each part costs."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from keeping import store
from torch import Tensor, nn
from vision_cells import FOLDER, NAMES, OURS, STAGES, accuracy

from llmfold.clustering import cluster
from llmfold.folding.grouping import Groups
from llmfold.inversion.deep import batch_norms
from llmfold.modules.activations import watch_layers
from llmfold.modules.fold import Repair, by_weights
from llmfold.modules.narrow import tensors_of, unit_statistics, with_tensors
from llmfold.modules.plan import ModulePlan
from llmfold.modules.reconstruct import reconstructed
from llmfold.modules.statistics import normalised, with_restored_variance

if TYPE_CHECKING:
    from vision import Bench

IMAGES = 100
RATES = (0.1, 0.25, 0.45)
AR: tuple[tuple[str, Repair], ...] = (("fold", "none"), ("fold + AR", "variance"))


def drift(bench: "Bench") -> None:
    """Measure a network at some rates and keep that."""
    norms = [path for path, part in bench.dense.named_modules() if isinstance(part, nn.BatchNorm2d)]
    dense = _given(bench.dense, norms, bench.x[:IMAGES])
    rows, alone = {}, {}
    for rate in RATES:
        plan = bench.plan(rate)
        for name, network in _networks(bench, plan):
            given = _given(network, norms, bench.x[:IMAGES])
            left = {
                stage: _mean([given[path] / dense[path] for path in norms if path.startswith(stage)])
                for stage in STAGES
            }
            rows[f"{name}|{rate:g}"] = {"accuracy": accuracy(bench.measured(network)), "left": left}
            print(f"{bench.name} {name} {rate:g}: {rows[f'{name}|{rate:g}']}", flush=True)
        for name, repair in AR:
            alone[f"{name}|{rate:g}"] = _alone(bench, plan, repair, dense)
    store(FOLDER / f"drift-{bench.name}.json", {"network": bench.name, "images": IMAGES, "rows": rows, "alone": alone})


def _networks(bench: "Bench", plan: ModulePlan) -> Iterator[tuple[str, nn.Module]]:
    inverted = bench.images(0)
    fold = by_weights(bench.dense, plan, "paper", "none").eval()
    yield "fold", fold
    yield "fold, variances measured", _measured_anew(fold, inverted, means=False)
    yield "fold, variances and means measured", _measured_anew(fold, inverted, means=True)
    yield "fold + AR", by_weights(bench.dense, plan, "paper", "variance").eval()
    yield "fold + AR on clusters of the fold", _restored_on_own_clusters(bench.dense, plan)
    yield NAMES[OURS], reconstructed(bench.dense, plan.couplings.found, plan.widths, inverted).eval()


def _measured_anew(network: nn.Module, inputs: Tensor, *, means: bool) -> nn.Module:
    """BatchNorms in turn get the variance of what they read, and its mean if that is asked for."""
    result = copy.deepcopy(network)

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(args[0], (0, 2, 3))
        norm.get_buffer("running_var").copy_(variance)
        if means:
            norm.get_buffer("running_mean").copy_(mean)

    hooks = [norm.register_forward_pre_hook(measure) for norm in batch_norms(result)]
    with torch.no_grad():
        result(inputs)
    for hook in hooks:
        hook.remove()
    return result


def _restored_on_own_clusters(dense: nn.Module, plan: ModulePlan) -> nn.Module:
    """Fold-AR with rows clustered as they are, in place of normalised ones."""
    couplings, tensors = plan.couplings.found, tensors_of(dense)
    groups = [
        Groups(cluster(c.rows(tensors), plan.widths[c.name], method="hartigan", certificate=False).labels)
        for c in couplings
    ]
    rows = normalised(dense, plan.couplings, tensors)
    return with_tensors(dense, with_restored_variance(rows, couplings, groups)[0]).eval()


def _alone(bench: "Bench", plan: ModulePlan, repair: Repair, dense: dict[str, float]) -> float:
    """Variance left where one coupling is folded and no other: mean over those with one BatchNorm, inside of blocks."""
    left = []
    for coupling in plan.couplings.found:
        if len(statistics := unit_statistics(coupling)) == 1:
            widths = {c.name: plan.widths[c.name] if c is coupling else c.units for c in plan.couplings.found}
            network = by_weights(bench.dense, replace(plan, widths=widths), "paper", repair).eval()
            path = statistics[0][0].tensor.rpartition(".")[0]
            left.append(_given(network, [path], bench.x[:IMAGES])[path] / dense[path])
    return _mean(left)


def _mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _given(network: nn.Module, paths: list[str], x: Tensor) -> dict[str, float]:
    """Mean variance of the channels that each BatchNorm gives."""
    found: dict[str, float] = {}
    watch_layers(
        network, x, paths, lambda path, _, y: found.update({path: float(y.var((0, 2, 3)).mean())}), batch=len(x)
    )
    return found
