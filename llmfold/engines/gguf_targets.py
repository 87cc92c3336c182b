"""What llmfold's families are called in llama.cpp, and which of their forms its architectures hold, as data.

Both ``llmfold export gguf`` and ``llmfold doctor`` decide by this, so torch is not imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmfold.errors import CheckpointError

_OWN_SCALES = ("attention_factor", "mscale", "mscale_all_dim")
"""Keys of YaRN whose values llama.cpp does not take from the file."""
_WITH_BIAS = {
    "qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "o": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj", "gate_up_proj"),
}


@dataclass(frozen=True)
class Form:
    """What of a model decides which architecture holds it.

    Attributes:
        family: as transformers names it.
        uniform: whether all layers have the same widths and are built alike.
        fills: whether the heads of every layer are together as wide as the hidden state.
        biases: which of ``qkv``, ``o`` and ``mlp`` have one.
        tied: whether the embedding is the head.
        activation: of the MLP, as the config names it; None for the one that the family has by itself.
        rope: rotary parameters, with ``rope_type``; ``partial_rotary_factor`` where the config has one.
        shares: whether the weights of the experts of a token sum to one; true where there are no experts.
    """

    family: str
    uniform: bool
    fills: bool
    biases: frozenset[str]
    tied: bool
    activation: str | None
    rope: Mapping[str, Any]
    shares: bool = True


def biases_among(names: Iterable[str]) -> frozenset[str]:
    """Which of ``qkv``, ``o`` and ``mlp`` have a bias, by the names of a checkpoint's tensors."""
    there = {name.rsplit(".", 2)[-2] for name in names if name.endswith(".bias") and name.count(".") > 1}
    return frozenset(part for part, layers in _WITH_BIAS.items() if not there.isdisjoint(layers))


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

    def lacks(self, form: Form) -> str | None:
        """What of a model it cannot hold, as the end of a sentence that begins with its name; None if it holds all."""
        refused = sorted(form.biases - self.biases)
        if not self.by_layer and not form.uniform:
            return "takes one width for all layers: fold to the same widths in every layer"
        if not self.any_heads and not form.fills:
            return "takes only heads that are together as wide as the hidden state: keep the heads, fold the MLP"
        if refused:
            return f"has no bias on {refused[-1]}"
        if not self.head and not form.tied:
            return "uses the embedding as its head, and this model has another"
        if not form.shares:
            return "divides the weights of a token's experts by their sum, and norm_topk_prob in config.json is false"
        return None

    def misturns(self, rope: Mapping[str, Any]) -> str | None:
        """What of rotary parameters it would compute otherwise; None where it computes all."""
        kind = str(rope.get("rope_type", "default"))
        if rope.get("partial_rotary_factor") not in (None, 1.0):
            return "partial_rotary_factor"
        own = all(rope.get(name) is None for name in _OWN_SCALES) and rope.get("truncate", True)
        known = {"default": True, "linear": True, "llama3": self.frequencies, "yarn": own}
        return None if known.get(kind) else f"rope_type {kind!r}"


_LLAMA = Target("llama", neighbours=True, biases=frozenset({"qkv", "o", "mlp"}), frequencies=True)
_DECI = Target("deci", neighbours=True, by_layer=True, biases=frozenset({"qkv", "o", "mlp"}), frequencies=True)
_TARGETS = {
    "llama": (_LLAMA, _DECI),
    "mistral": (_LLAMA, _DECI),
    # A Qwen2 of other widths is a Llama with biases.
    "qwen2": (Target("qwen2", any_heads=False, biases=frozenset({"qkv"})), _DECI),
    "qwen3": (Target("qwen3"),),
    "qwen3_moe": (Target("qwen3moe"),),
    "mixtral": (Target("llama", neighbours=True, frequencies=True),),
    "gemma": (Target("gemma", gain=1.0, head=False, activations=("gelu", "gelu_pytorch_tanh")),),
    "phi3": (Target("phi3", any_heads=False),),
}


def target_of(form: Form) -> Target:
    """The architecture that computes a model.

    Raises:
        CheckpointError: there is none, with the reason.
    """
    targets = _TARGETS.get(form.family)
    if targets is None:
        raise CheckpointError(
            f"model_type {form.family!r} is not one that llmfold exports to GGUF ({', '.join(_TARGETS)}): try the "
            "converter of llama.cpp, which takes a folder of the same kind as the model's own"
        )
    found = next((target for target in targets if target.lacks(form) is None), None)
    if found is None:
        target = targets[-1]
        raise CheckpointError(f"llama.cpp's architecture {target.architecture} {target.lacks(form)}")
    if form.activation is not None and form.activation not in found.activations:
        raise CheckpointError(
            f"hidden_act in config.json is {form.activation!r}, but llama.cpp's architecture {found.architecture} "
            f"computes {found.activations[0]}: this model cannot be exported"
        )
    wrong = found.misturns(form.rope)
    if wrong is not None:
        raise CheckpointError(
            f"{wrong} in config.json is nothing that llama.cpp's architecture {found.architecture} computes alike, so "
            "the model is not exported"
        )
    return found
