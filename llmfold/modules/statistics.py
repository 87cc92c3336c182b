"""What BatchNorms of a narrower module expect: averaged, measured anew, or matched to the dense ones."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmfold.folding.grouping import Groups
from llmfold.folding.variance import variance_scale
from llmfold.inversion.deep import Norm, batch_norms
from llmfold.modules.coupling import ChannelCoupling, Couplings
from llmfold.modules.narrow import Result, merged, unit_statistics


def normalised(module: nn.Module, couplings: Couplings, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same function with the running variance of every coupled BatchNorm in the rows before it: Σ_n W.

    A BatchNorm that reads anything but the output of one layer, which nothing else reads, stays.
    """
    result = dict(tensors)
    coupled = {mean.tensor.rpartition(".")[0] for c in couplings.found for mean, _ in unit_statistics(c)}
    for path in coupled & couplings.norms.keys():
        norm, layer = module.get_submodule(path), couplings.norms[path]
        assert isinstance(norm, Norm)
        scale = (result[f"{path}.running_var"] + norm.eps).rsqrt()
        weight = result[f"{layer}.weight"]
        result[f"{layer}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        if f"{layer}.bias" in result:
            result[f"{layer}.bias"] = result[f"{layer}.bias"] * scale
        result[f"{path}.running_mean"] = result[f"{path}.running_mean"] * scale
        result[f"{path}.running_var"] = torch.full_like(scale, 1 - norm.eps)
    return result


def with_restored_variance(
    tensors: Mapping[str, Tensor], couplings: Sequence[ChannelCoupling], groups: Sequence[Groups]
) -> Result:
    """Merge, and give every merged BatchNorm gain back the variance that averaging took: Fold-AR.

    A gain is the mean of its members' times ``N / sqrt(N + (N² − N) c)``, with c the mean correlation of the cluster
    of N, estimated from weights (Wang et al., ICLR 2025, section 4). Expects :func:`normalised` tensors.
    """
    result, after = merged(tensors, couplings, groups)
    for before, coupling, partition in zip(couplings, after, groups, strict=True):
        scale = variance_scale(before.rows(tensors), partition)
        for slot in coupling.of_kind("norm"):
            if slot.tensor.endswith(".weight"):
                gains = slot.read(result[slot.tensor])
                result[slot.tensor] = slot.write(result[slot.tensor], gains * scale[:, None].to(gains))
    return result, after


def reset_statistics(module: nn.Module, inputs: Tensor, batch: int = 250) -> None:
    """Measure the statistics of all BatchNorms on inputs, each with those before it normalised by their own batch.

    As the public implementation of model folding and REPAIR (Jordan et al., ICLR 2023) do; in place.

    Args:
        module: with BatchNorms.
        inputs: (n, …).
        batch: inputs at a time, at most; statistics are averages over batches of one size, to within an input.
    """
    norms = batch_norms(module)
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for part in torch.tensor_split(inputs, -(-len(inputs) // batch)):
            module(part)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
        norm.eval()


def matched(
    dense: tuple[Tensor, Tensor], folded: tuple[Tensor, Tensor], running: tuple[Tensor, Tensor], strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Running statistics that make a narrower BatchNorm see, on some inputs, what the dense one saw on the same.

    Whatever the inputs are, what is wrong with them cancels: with statistics m, v of the dense module on them and μ, σ²
    its running ones, the units' normalised values keep their mean (m − μ) / σ and variance v / σ². Statistics measured
    on the inputs alone would make those zero and one, which they are on data, not on its substitutes.

    Args:
        dense: means and variances (k,) of the dense module on the inputs, for the units that stay.
        folded: those of the narrower module.
        running: the dense module's running ones.
        strength: exponent of the change in variance: zero leaves amplitudes as the fit gave them.

    Returns:
        Running means and variances (k,).
    """
    floor = 1e-12 + 1e-6 * running[1]
    ratio = ((folded[1] + floor) / (dense[1] + floor)).pow(strength).clamp(1e-4, 1e4)
    variance = running[1] * ratio
    mean = folded[0] - (dense[0] - running[0]) * ratio.sqrt()
    return mean, variance


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (c,) of a tensor (n, c, …) over all other axes."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    return mean, variance


def pooled(parts: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all from counts, means and variances of batches."""
    means = torch.stack([mean for _, mean, _ in parts])
    weights = torch.tensor([float(count) for count, _, _ in parts]).to(means)
    weights = (weights / weights.sum())[:, None]
    mean = (weights * means).sum(0)
    within = torch.stack([variance for _, _, variance in parts])
    return mean, (weights * (within + (means - mean).square())).sum(0)
