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

The gradient is streamed, so memory is bounded by a layer here too: hidden states before every layer go to disk, and
the backward pass recomputes one layer at a time. It takes layers x tokens x hidden x 4 bytes of disk.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.methods.baselines.pruner import Pruner
from llmfold.methods.baselines.structures import WEIGHT_ROLES, Units, Weights, coupled_sums
from llmfold.methods.dense import Measurement
from llmfold.models import FINAL_NORM, LayerShape, ModelShape, head_name
from llmfold.models.forward import decoder_layer, rms_norm
from llmfold.runtime.hidden_states import STATE_FOLDER, chunks, mapped, read, write


class TaylorPruner(Pruner):
    """``--method llm-pruner``: cuts by importances that were computed beforehand."""

    def __init__(
        self, shape: ModelShape, device: torch.device, importances: dict[str, Tensor], facts: dict[str, Any]
    ) -> None:
        """Set up with the importances of all layers, see :func:`taylor_importances`."""
        super().__init__(shape, device, facts)
        self._importances = importances

    def scores(self, index: int, weights: Weights, layer: LayerShape) -> Units:
        """What the backward pass found."""
        return Units(self._importances[f"{index}.neurons"], self._importances[f"{index}.heads"])


def taylor_importances(
    on: Measurement,
    tokens: Tensor,
    checkpoint: Checkpoint,
    read_layer: Callable[[int], Weights],
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """Importance of all units of all layers from one forward and one backward pass.

    Args:
        on: the embedded tokens.
        tokens: (sequences, length) token ids.
        checkpoint: for what lies outside the layers.
        read_layer: tensors of a layer by role.
        say: told of every layer.

    Returns:
        By ``LAYER.PART``, the scores of ``neurons`` and ``heads``, float64.
    """
    trace = _Trace(on, read_layer)
    for index in range(len(on.shape.layers)):
        say(f"layer {index}: forward")
        trace.forward(index)
    trace.seed(tokens, checkpoint)
    found = {}
    for index in reversed(range(len(on.shape.layers))):
        say(f"layer {index}: backward")
        units = trace.backward(index)
        found.update({f"{index}.neurons": units.neurons, f"{index}.heads": units.heads})
    trace.discard()
    return found


class _Trace:
    """Hidden states before every layer and after the last on disk; gradients take their place from the last one on."""

    def __init__(self, on: Measurement, read_layer: Callable[[int], Weights]) -> None:
        self._on, self._read_layer = on, read_layer
        self._path = on.work / STATE_FOLDER / "trace.npy"
        self._path.parent.mkdir(exist_ok=True)
        shape = (len(on.shape.layers) + 1, *on.size, on.shape.hidden)
        self._rows = mapped(self._path, shape)
        for part, hidden in zip(chunks(on.size[0]), on.start(), strict=True):
            write(self._rows[0], part, hidden)

    def _layer(self, index: int) -> dict[str, Tensor]:
        return {role: t.to(self._on.device, torch.float32) for role, t in self._read_layer(index).items()}

    def _run(self, index: int, x: Tensor, weights: Weights) -> Tensor:
        return decoder_layer(x, weights, self._on.shape.layers[index], self._on.stream.context, index)

    @torch.no_grad()
    def forward(self, index: int) -> None:
        weights = self._layer(index)
        for part in chunks(self._on.size[0]):
            x = read(self._rows[index], part, self._on.device)
            write(self._rows[index + 1], part, self._run(index, x, weights))

    def seed(self, tokens: Tensor, checkpoint: Checkpoint) -> None:
        """Gradient of the mean next-token loss with respect to the last hidden states, a sequence at a time."""
        on, count = self._on, tokens[:, 1:].numel()
        gain = checkpoint.read(FINAL_NORM).to(on.device, torch.float32)
        head = checkpoint.read(head_name(checkpoint.tensors, on.shape.tied)).to(on.device, torch.float32)
        for part in chunks(on.size[0], 1):
            x = read(self._rows[-1], part, on.device).requires_grad_()
            with torch.enable_grad():
                logits = F.linear(rms_norm(x[:, :-1], gain, on.stream.context.eps), head)
                loss = F.cross_entropy(logits.flatten(0, 1), tokens[part, 1:].flatten().to(on.device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            write(self._rows[-1], part, gradient / count)

    def backward(self, index: int) -> Units:
        """Importances of a layer; the gradient moves from behind the layer to before it."""
        weights = self._layer(index)
        leaves = {role: weights[role].requires_grad_() for role in WEIGHT_ROLES}
        total = {role: torch.zeros_like(weights[role]) for role in WEIGHT_ROLES}
        for part in chunks(self._on.size[0]):
            x = read(self._rows[index], part, self._on.device).requires_grad_()
            with torch.enable_grad():
                y = self._run(index, x, weights)
            behind = read(self._rows[index + 1], part, self._on.device)
            gradient, *gradients = torch.autograd.grad(y, [x, *leaves.values()], behind)
            write(self._rows[index], part, gradient)
            for role, own in zip(leaves, gradients, strict=True):
                total[role] += own
        entries = {role: (weights[role].detach() * gradient).abs() for role, gradient in total.items()}
        return coupled_sums(entries, self._on.shape.layers[index])

    def discard(self) -> None:
        del self._rows
        self._path.unlink()
