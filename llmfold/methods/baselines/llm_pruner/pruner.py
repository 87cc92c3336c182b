"""LLM-Pruner: first-order Taylor importance of coupled structures (Ma et al., NeurIPS 2023, arXiv 2305.11627).

Section 3.2, element-wise importance to first order: a weight counts ``|w · ∂L/∂w|``, L being the language-model loss
on text, and a structure the sum over its weights (``param_first`` with ``sum`` aggregation in the published code, the
default there). Pruning is local and block-wise: every layer keeps its best units, scored once on the dense model, and
the recovery by fine-tuning is left out, as everywhere in llmfold.

What the published scripts do otherwise: the first four layers and the last two (of LLaMA-7B's 32) stay as they are,
and the others lose the same fraction of neurons and of heads. Here a recipe says that, and layers come to differ in
width::

    mlp_ratio: 0.25
    attention_ratio: 0.25
    layers:
      0-3: {mlp: 0, attention: 0}
      30-31: {mlp: 0, attention: 0}

The gradient is streamed, so memory is bounded by a layer here too; see :mod:`llmfold.methods.gradients`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.methods.base import FoldContext, Weights
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.structures import Units, coupled_sums, structures_of
from llmfold.methods.gradients import GradientPasses
from llmfold.methods.method import Notify
from llmfold.methods.source import TokenSource, token_source
from llmfold.models import LayerShape, Role
from llmfold.runtime.hidden_states import stored_tensors


class TaylorPruner(Pruner):
    """``--method llm-pruner``: cuts by importances that were computed beforehand."""

    def __init__(self, context: FoldContext, source: TokenSource, importances: dict[str, Tensor]) -> None:
        """Set up with the importances of all layers, see :func:`taylor_importances`."""
        super().__init__(context, source.facts)
        self._importances = importances

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """What the backward pass found."""
        return Units(self._importances[f"{index}.neurons"], self._importances[f"{index}.heads"])


def build(context: FoldContext, notify: Notify) -> TaylorPruner:
    """See :meth:`llmfold.methods.method.Method.build`."""
    source, path = token_source(context, notify), context.states / "importances.safetensors"
    return TaylorPruner(context, source, stored_tensors(path, lambda: taylor_importances(context, source, notify)))


def taylor_importances(context: FoldContext, source: TokenSource, notify: Notify) -> dict[str, Tensor]:
    """Importance of all units of all layers from one forward and one backward pass over the tokens of ``source``.

    Returns:
        By ``LAYER.PART``, the scores of ``neurons`` and ``heads``, float64 on the CPU.
    """
    folder, layers = context.states / "trace", context.shape.layers
    passes = GradientPasses(source.measurement, folder, len(source.tokens), context.read_layer, notify)
    passes.forward("forward")
    passes.seed(_loss_gradient(context, source), size=1)

    def of_layer(index: int, weights: dict[Role, Tensor], x: Tensor, behind: Tensor) -> tuple[Tensor, ...]:
        leaves = [weights[role].requires_grad_() for role in structures_of(context.shape, index).matrices]
        y = source.measurement.context.layer(x, weights, index)
        return torch.autograd.grad(y, [x, *leaves], behind)

    importances = {}
    for index, weights, gradients in passes.backward("backward", of_layer):
        structures = structures_of(context.shape, index)
        pairs = zip(structures.matrices, gradients, strict=True)
        entries = {role: (weights[role].detach() * gradient).abs() for role, gradient in pairs}
        units = coupled_sums(entries, structures, layers[index])
        importances.update({f"{index}.neurons": units.neurons, f"{index}.heads": units.heads})
    folder.rmdir()
    return importances


def _loss_gradient(context: FoldContext, source: TokenSource) -> Callable[[Tensor, slice], Tensor]:
    """What gives the gradient of the mean next-token loss in the states of some sequences after the last layer."""
    tokens, device = source.tokens, context.device
    ends = source.measurement.context.ends(context.checkpoint, device)

    def gradient(x: Tensor, part: slice) -> Tensor:
        x.requires_grad_()
        with torch.enable_grad():
            logits = ends.logits(x[:, :-1].flatten(0, 1))
            loss = F.cross_entropy(logits, tokens[part, 1:].flatten().to(device), reduction="sum")
        return torch.autograd.grad(loss, x)[0] / tokens[:, 1:].numel()

    return gradient
