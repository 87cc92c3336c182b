"""What llmfold's families are called in llama.cpp, and which of their forms its architectures hold, as data."""

from dataclasses import dataclass

from llmfold.errors import CheckpointError
from llmfold.models import ModelShape


@dataclass(frozen=True)
class Target:
    """An architecture of llama.cpp.

    Attributes:
        architecture: its name in the file.
        neighbours: whether it turns neighbouring dimensions of queries and keys by one angle. Checkpoints pair each
            dimension of a head's first half with one of its second, so rows of q and k are reordered.
        by_layer: whether layers may differ in width.
        any_heads: whether all heads together may be wider or narrower than the hidden state.
        biases: which of ``qkv``, ``o`` and ``mlp`` may have one.
        gain: what the model adds to the gains of its norms, and llama.cpp does not.
        head: whether it reads a head of its own, and not only the embedding.
        frequencies: whether it reads a factor for every rotary frequency.
        activations: words of ``hidden_act`` for what it computes.
    """

    architecture: str
    neighbours: bool = False
    by_layer: bool = False
    any_heads: bool = True
    biases: frozenset[str] = frozenset()
    gain: float = 0.0
    head: bool = True
    frequencies: bool = False
    activations: tuple[str, ...] = ("silu", "swish")

    def lacks(self, shape: ModelShape) -> str | None:
        """What of a model it cannot hold, as the end of a sentence that begins with its name; None if it holds all."""
        biases = {"qkv": shape.qkv_bias, "o": shape.o_bias, "mlp": shape.mlp_bias}
        refused = [name for name, there in biases.items() if there and name not in self.biases]
        if not self.by_layer and not shape.uniform:
            return "takes one width for all layers: fold to the same widths in every layer"
        if not self.any_heads and any(each.heads * shape.head_dim != shape.hidden for each in shape.layers):
            return "takes only heads that are together as wide as the hidden state: keep the heads, fold the MLP"
        if refused:
            return f"has no bias on {refused[0]}"
        if not self.head and not shape.tied:
            return "uses the embedding as its head, and this model has another"
        return None


_LLAMA = Target("llama", neighbours=True, biases=frozenset({"qkv", "o", "mlp"}), frequencies=True)
_DECI = Target("deci", neighbours=True, by_layer=True, biases=frozenset({"qkv", "o", "mlp"}), frequencies=True)
_TARGETS = {
    "llama": (_LLAMA, _DECI),
    "mistral": (_LLAMA, _DECI),
    # A Qwen2 of other widths is a Llama with biases.
    "qwen2": (Target("qwen2", any_heads=False, biases=frozenset({"qkv"})), _DECI),
    "qwen3": (Target("qwen3"),),
    "gemma": (Target("gemma", gain=1.0, head=False, activations=("gelu", "gelu_pytorch_tanh")),),
    "phi3": (Target("phi3", any_heads=False),),
}


def target_of(shape: ModelShape, activation: str) -> Target:
    """The architecture that computes a model.

    Args:
        shape: of the model.
        activation: of its MLP, as its config names it.

    Raises:
        CheckpointError: there is none, with the reason.
    """
    family = shape.architecture.model_type
    targets = _TARGETS.get(family)
    if targets is None:
        raise CheckpointError(
            f"model_type {family!r} is not one that llmfold exports to GGUF ({', '.join(_TARGETS)}): try the converter "
            "of llama.cpp, which takes a folder of the same kind as the model's own"
        )
    found = next((target for target in targets if target.lacks(shape) is None), None)
    if found is None:
        target = targets[-1]
        raise CheckpointError(f"llama.cpp's architecture {target.architecture} {target.lacks(shape)}")
    if activation not in found.activations:
        raise CheckpointError(
            f"hidden_act in config.json is {activation!r}, but llama.cpp's architecture {found.architecture} computes "
            f"{found.activations[0]}: this model cannot be exported"
        )
    return found
