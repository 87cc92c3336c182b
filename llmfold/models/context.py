"""What methods ask of a model's forward passes, a layer at a time."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from llmfold.checkpoint import Checkpoint
from llmfold.models.base import LayerShape, ModelShape, Role
from llmfold.models.coupling import NeuronCoupling
from llmfold.models.unembedding import Ends

Weights = Mapping[Role, Tensor]


class Context(Protocol):
    """Forward passes of a model; weights of a layer come by role, in the dtype and on the device of the states.

    Of a layer's inside there are kept as many features a row as ``inner_width`` says: enough to tell what its MLPs are
    given without running the attention again.
    """

    @property
    def shape(self) -> ModelShape:
        """The model's shape."""

    @property
    def inner_width(self) -> int:
        """Features that are kept of a layer's inside, a row."""

    def through(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor, Tensor]:
        """What is kept of a layer's inside, and the states after it, from those before (sequences, tokens, hidden)."""

    def layer(self, x: Tensor, weights: Weights, index: int, widths: LayerShape | None = None) -> Tensor:
        """The states after a layer; ``widths`` are those of the weights where they are not the model's."""

    def heads(self, x: Tensor, weights: Weights, index: int) -> Tensor:
        """Outputs of the heads (sequences, tokens, heads * head_dim) from the states before a layer."""

    def disturbed(self, inside: Tensor, after: Tensor) -> Tensor:
        """The states that an error of the attention disturbs first, of those that are kept."""

    def mlp_inputs(self, inside: Tensor, weights: Weights, coupling: NeuronCoupling, index: int) -> Tensor:
        """What a coupling's producers read (…, hidden)."""

    def mlp_outputs(self, inside: Tensor, after: Tensor, x: Tensor, mlp: Weights, coupling: NeuronCoupling) -> Tensor:
        """What a dense coupling's consumer gives (…, hidden) for inputs ``x``."""

    def neurons(self, x: Tensor, mlp: Weights, coupling: NeuronCoupling) -> Tensor:
        """Activations (…, n) of neurons for inputs (…, hidden)."""

    def routing(self, x: Tensor, weights: Weights, index: int, coupling: NeuronCoupling) -> tuple[Tensor, Tensor]:
        """Experts (t, k) of each row and their weights (t, k), from the states before a layer."""

    def differentiable(self, x: Tensor, weights: Weights, index: int) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Where an error of the attention enters, where one of the MLP does, and the states after a layer."""

    def embed(self, checkpoint: Checkpoint, tokens: Tensor, device: torch.device) -> Iterator[Tensor]:
        """The states before the first layer, in chunks of ``CHUNK`` sequences."""

    def ends(self, checkpoint: Checkpoint, device: torch.device) -> Ends:
        """What the model makes of the states after the last layer."""
