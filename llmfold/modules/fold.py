"""``llmfold.fold_module``: a narrower copy of any traced module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from llmfold.clustering import cluster
from llmfold.clustering.cluster import Method as ClusterMethod
from llmfold.errors import UsageError
from llmfold.folding.grouping import Groups
from llmfold.inversion.deep import InversionOptions, batch_norms, float_tensors, inverted_inputs
from llmfold.modules.baselines import closest_pairs, magnitude, resampled
from llmfold.modules.coupling import ChannelCoupling
from llmfold.modules.narrow import merged, selected, tensors_of, with_tensors
from llmfold.modules.plan import ModulePlan, RatioOf, planned
from llmfold.modules.projection import with_projections
from llmfold.modules.reconstruct import reconstructed
from llmfold.modules.statistics import normalised, reset_statistics, with_restored_variance

DEFAULT_CLUSTERING: ClusterMethod = "hartigan"
Method = Literal["self", "paper", "ifm", "inn", "magnitude-l1", "magnitude-l2"]
Repair = Literal["none", "variance", "statistics"]


def fold_module(
    module: nn.Module,
    example_inputs: Sequence[Any],
    ratio: float = 0.3,
    *,
    method: Method = "self",
    repair: Repair | None = None,
    seed: int = 0,
    ratio_of: RatioOf = "parameters",
    widths: Mapping[str, int] | None = None,
    inputs: Tensor | None = None,
    clustering: ClusterMethod = DEFAULT_CLUSTERING,
    heads: bool = False,
) -> nn.Module:
    """A narrower copy of a module: channels and neurons that ``torch.export`` shows to be free become fewer.

    Without ``inputs`` nothing from outside the module is looked at but the shapes of ``example_inputs``: what is
    measured on is inverted from the module's own BatchNorms (Yin et al., CVPR 2020), and standard normal where it has
    none.

    Args:
        module: left as it is; folded as it computes in evaluation.
        example_inputs: positional arguments of its forward pass, a batch of at least two.
        ratio: fraction that goes: of parameters, or of every coupling's channels.
        method: ``self`` (units chosen and layers refit on inverted inputs), ``paper`` (clusters merged; Wang et al.,
            ICLR 2025), or a baseline of :mod:`llmfold.modules.baselines`.
        repair: ``none``; ``variance`` (Fold-AR: gains of merged BatchNorms restored by weights alone; for ``paper``
            and ``ifm``); ``statistics`` (BatchNorms measured anew: Fold-DIR on inverted inputs, REPAIR on ``inputs``).
            ``self`` repairs by itself and takes none. By default ``variance`` for ``paper``, else ``none``.
        seed: of inversion and of k-means++.
        ratio_of: what the ratio counts.
        widths: units of single couplings by name, in place of what the ratio gives.
        inputs: (n, …) real inputs to measure on; the result then depends on data.
        clustering: of ``paper``.
        heads: whether whole heads of attentions go too, queries, keys and values of one together.

    Returns:
        The narrower module, in evaluation. It is of the class of the module; where channels are padded with zeros, it
        is a graph of it in which 1 × 1 convolutions do that.

    Raises:
        UsageError: options that do not fit, a module that torch.export cannot trace, or nothing to narrow.
    """
    _check(method, repair, clustering)
    dense = with_projections(with_tensors(module, {}).eval(), example_inputs)
    if repair in ("variance", "statistics") and not batch_norms(dense):
        raise UsageError(f"repair={repair} changes BatchNorms, and the module has none: leave repair out")
    plan = planned(module, dense, example_inputs, ratio, ratio_of, widths, heads=heads)
    if plan.unchanged:
        return with_tensors(module, {}).eval()
    if inputs is None and measures(method, repair):
        inputs = own_inputs(dense, example_inputs, seed)
    return folded(dense, plan, method, repair, inputs, clustering=clustering, seed=seed)


def measures(method: Method, repair: Repair | None) -> bool:
    """Whether inputs are run through the module."""
    return method == "self" or repair == "statistics"


def folded(
    dense: nn.Module,
    plan: ModulePlan,
    method: Method,
    repair: Repair | None,
    seen: Tensor | None,
    *,
    clustering: ClusterMethod = DEFAULT_CLUSTERING,
    seed: int = 0,
    notify: Callable[[str], None] = lambda stage: None,
) -> nn.Module:
    """A narrower module by a plan.

    Args:
        dense: with its padding as projections.
        plan: of it.
        method: as of :func:`fold_module`.
        repair: likewise.
        seen: (n, …) inputs, where :func:`measures` asks for them.
        clustering: of ``paper``.
        seed: of k-means++.
        notify: told how far the refit is.
    """
    repair = repair or ("variance" if method == "paper" else "none")
    if not measures(method, repair):
        return by_weights(dense, plan, method, repair, clustering=clustering, seed=seed).eval()
    assert seen is not None
    if method == "self":
        return reconstructed(dense, plan.couplings.found, plan.widths, seen, notify=notify).eval()
    narrower = by_weights(dense, plan, method, repair, clustering=clustering, seed=seed).eval()
    reset_statistics(narrower, seen)
    return narrower


def by_weights(
    dense: nn.Module,
    plan: ModulePlan,
    method: Method,
    repair: Repair,
    *,
    clustering: ClusterMethod = DEFAULT_CLUSTERING,
    seed: int = 0,
) -> nn.Module:
    """A narrower module by a method that looks at weights alone.

    Args:
        dense: with its padding as projections.
        plan: of it.
        method: any but ``self``.
        repair: ``variance`` restores gains; all else leaves them.
        clustering: of ``paper``.
        seed: of k-means++.
    """
    couplings, tensors = plan.couplings.found, tensors_of(dense)
    ks = [plan.widths[coupling.name] for coupling in couplings]
    if method in ("magnitude-l1", "magnitude-l2"):
        kept = [magnitude(c, tensors, k, int(method[-1])) for c, k in zip(couplings, ks, strict=True)]
        return with_tensors(dense, selected(tensors, couplings, kept)[0])
    if method == "inn":
        return with_tensors(dense, resampled(tensors, couplings, ks)[0])
    if repair == "variance":
        tensors = normalised(dense, plan.couplings, tensors)

    def partition(coupling: ChannelCoupling, k: int) -> Groups:
        rows = coupling.rows(tensors)
        if method == "ifm":
            return closest_pairs(rows, k)
        return Groups(cluster(rows, k, method=clustering, seed=seed, certificate=False).labels)

    groups = [partition(coupling, k) for coupling, k in zip(couplings, ks, strict=True)]
    merge = with_restored_variance if repair == "variance" else merged
    return with_tensors(dense, merge(tensors, couplings, groups)[0])


def own_inputs(
    module: nn.Module,
    example_inputs: Sequence[Any],
    seed: int,
    notify: Callable[[str], None] = lambda stage: None,
) -> Tensor:
    """Inputs that the module implies: inverted from its BatchNorms, or standard normal where it has none."""
    first = example_inputs[0]
    if len(example_inputs) != 1 or not isinstance(first, Tensor) or not first.is_floating_point():
        raise UsageError("inputs can be made for a module of one floating-point argument: pass inputs of your own")
    options = InversionOptions(labels=_scores(module, first))
    if batch_norms(module):
        return inverted_inputs(module, first.shape[1:], options, seed, notify)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(options.count, *first.shape[1:], generator=generator).to(first)


def _scores(module: nn.Module, example: Tensor) -> bool:
    with torch.no_grad():
        given = next(iter(float_tensors(module(example))), None)
    return given is not None and given.ndim == 2


def _check(method: str, repair: str | None, clustering: str) -> None:
    if method not in get_args(Method):
        raise UsageError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if repair is not None and repair not in get_args(Repair):
        raise UsageError(f"repair must be one of {', '.join(get_args(Repair))}, got {repair!r}")
    if repair == "variance" and method not in ("paper", "ifm"):
        raise UsageError(f"repair=variance restores what merging averaged; {method} merges nothing")
    if clustering != DEFAULT_CLUSTERING and method != "paper":
        raise UsageError(f"clustering={clustering} is of method=paper; {method} has its own: leave it out")
    if method == "self" and repair not in (None, "none"):
        raise UsageError("method=self repairs by itself: leave repair out")
