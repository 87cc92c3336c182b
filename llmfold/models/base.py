"""What llmfold needs to know of a family, as data: names and shapes of tensors, which biases and norms there are."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from llmfold.errors import CheckpointError
from llmfold.models import refusals

Role = str
"""Short name of a tensor in a decoder layer, e.g. ``"q"``, ``"q_bias"``; ``"post_norm"`` is the norm before the MLP."""

ROLE_NAMES: dict[Role, str] = {
    "input_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "post_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
}
_ROLES = {path: role for role, path in ROLE_NAMES.items()}

WINDOW_KEYS = ("sliding_window", "layer_types", "use_sliding_window", "max_window_layers")
"""Config keys of sliding windows."""


@dataclass(frozen=True)
class Architecture:
    """One model family; those that are registered work as Llama does, and may be written in more ways than one.

    ``qkv_bias``, ``o_bias`` and ``mlp_bias`` are either a constant or the config key that says so. ``windows``: whether
    its layers read the :data:`WINDOW_KEYS` of a config, which are leftovers elsewhere. ``fallback`` is the family that
    the same tensors load under when this one's config refuses a head count.
    """

    model_type: str
    prefix: str
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    heads_divide_hidden: bool = False
    windows: bool = True
    fallback: str | None = None
    class_name: str = ""

    @property
    def registered(self) -> bool:
        """Whether llmfold was told of the family; else its stock class tells all that is known."""
        return not self.class_name

    @property
    def causal_lm(self) -> str:
        """Name of the transformers class, e.g. ``LlamaForCausalLM``."""
        return self.class_name or f"{self.prefix}ForCausalLM"

    def allows_heads(self, hidden: int, *heads: int) -> bool:
        """Whether a stock config with this hidden size can hold each of these query head counts."""
        return not self.heads_divide_hidden or not any(hidden % count for count in heads)


@dataclass(frozen=True)
class LayerShape:
    """Widths of one decoder layer: intermediate neurons, query heads, key/value heads; 0 where it has none.

    ``kind`` tells layers apart that are built differently, such as dense ones and mixtures of experts.
    """

    intermediate: int
    heads: int
    kv_heads: int
    kind: int = 0

    @property
    def group_size(self) -> int:
        """Query heads per key/value head."""
        return self.heads // max(self.kv_heads, 1)

    @property
    def grouped(self) -> bool:
        """Whether attention is cut by key/value groups with their query heads; by query heads where all share one."""
        return self.kv_heads > 1

    @property
    def head_units(self) -> int:
        """Units that attention is cut in."""
        return self.units_in(self)

    def units_in(self, narrower: "LayerShape") -> int:
        """How many of this layer's units a narrower form of it has."""
        return narrower.kv_heads if self.grouped else narrower.heads

    def with_units(self, neurons: int, units: int) -> "LayerShape":
        """The narrower layer with so many neurons and head units."""
        if self.grouped:
            return replace(self, intermediate=neurons, heads=units * self.group_size, kv_heads=units)
        return replace(self, intermediate=neurons, heads=units)

    def widths(self) -> dict[str, int]:
        """Widths by name, as reports hold them."""
        return {"intermediate": self.intermediate, "heads": self.heads, "kv_heads": self.kv_heads}


@dataclass(frozen=True)
class ModelShape:
    """Everything about a model's shape that folding, planning and checking need, resolved from its config."""

    architecture: Architecture
    hidden: int
    head_dim: int
    vocabulary: int
    layers: tuple[LayerShape, ...]
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    positions: int

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same widths."""
        return len(set(self.layers)) <= 1

    @property
    def biased(self) -> bool:
        """Whether any projection has a bias."""
        return self.qkv_bias or self.o_bias or self.mlp_bias

    def folds_heads(self, layer: LayerShape) -> bool:
        """Whether heads of such a layer can be folded."""
        return True

    def mlps(self, layer: LayerShape) -> int:
        """How many MLPs a layer has, every expert counted."""
        return 1

    def apart(self, index: int) -> tuple[int, int]:
        """Parameters of the experts of a layer that can be in memory without the others, and of all else in it."""
        return 0, self.layer_parameters(self.layers[index])

    def stored_shapes(self, index: int, layer: LayerShape) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a layer's stored tensors at widths ``layer``."""
        return {tensor_name(index, role): size for role, size in self.layer_roles(layer)}

    def layer_roles(self, layer: LayerShape) -> Iterator[tuple[Role, tuple[int, ...]]]:
        """Yield role and shape of every tensor of a decoder layer of widths ``layer``, in module order."""
        d, n = self.hidden, layer.intermediate
        q, kv = layer.heads * self.head_dim, layer.kv_heads * self.head_dim
        yield "input_norm", (d,)
        yield from (("q", (q, d)), ("k", (kv, d)), ("v", (kv, d)), ("o", (d, q)))
        if self.qkv_bias:
            yield from (("q_bias", (q,)), ("k_bias", (kv,)), ("v_bias", (kv,)))
        if self.o_bias:
            yield "o_bias", (d,)
        if self.architecture.qk_norm:
            yield from (("q_norm", (self.head_dim,)), ("k_norm", (self.head_dim,)))
        yield "post_norm", (d,)
        yield from (("gate", (n, d)), ("up", (n, d)), ("down", (d, n)))
        if self.mlp_bias:
            yield from (("gate_bias", (n,)), ("up_bias", (n,)), ("down_bias", (d,)))

    def layer_parameters(self, layer: LayerShape) -> int:
        """Parameters of one decoder layer of widths ``layer``."""
        d, h = self.hidden, self.head_dim
        fixed = 2 * d + self.o_bias * d + self.mlp_bias * d + self.architecture.qk_norm * 2 * h
        per_group = h * (2 * d + self.qkv_bias * 2) * layer.kv_heads
        per_head = h * (2 * d + self.qkv_bias) * layer.heads
        return fixed + per_group + per_head + self.neuron_parameters * layer.intermediate

    @property
    def inferred(self) -> str:
        """What was found to fold, and what is kept, in words; empty of a family that llmfold was told of."""
        return ""

    @property
    def grain(self) -> int:
        """What MLP widths divide by, for the model's class to run on them."""
        return 1

    def stored_names(self, index: int) -> list[str]:
        """Names of the stored tensors of a layer."""
        return list(self.stored_shapes(index, self.layers[index]))

    def layer_stored(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the stored tensors of all layers."""
        return {
            name: size
            for index, layer in enumerate(self.layers)
            for name, size in self.stored_shapes(index, layer).items()
        }

    def stored_tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all stored tensors, in module order; a tied head is listed under the embedding only."""
        table = (self.vocabulary, self.hidden)
        ends = {FINAL_NORM: (self.hidden,), **({} if self.tied else {HEAD: table})}
        return {EMBEDDING: table, **self.layer_stored(), **ends}

    def check_stored(self, stored: Mapping[str, tuple[int, ...]]) -> None:
        """Check names and shapes of tensors. Tied embeddings may be stored under either name or both.

        Raises:
            CheckpointError: naming the first tensor that is missing, of the wrong shape, or unknown.
        """
        expected = self.stored_tensors()
        if self.tied and HEAD in stored:
            expected[HEAD] = expected[EMBEDDING]
            if EMBEDDING not in stored:
                del expected[EMBEDDING]
        for name, size in expected.items():
            if name not in stored:
                raise self._missing(name, stored)
            if tuple(stored[name]) != size:
                raise CheckpointError(
                    f"tensor {name} has shape {list(stored[name])} but config.json implies {list(size)}: correct "
                    "its sizes, or download the model again"
                )
        unknown = sorted(set(stored) - set(expected))
        if unknown:
            raise refusals.not_part(unknown[0], self.architecture.causal_lm)

    def _missing(self, missing: str, stored: Iterable[str]) -> CheckpointError:
        """Why a tensor is not among those that are stored."""
        for name in stored:
            for expected in (missing, missing.removeprefix("model.")):
                if name != expected and name.endswith(f".{expected}"):
                    return CheckpointError(
                        f"tensor {missing} is stored as {name}: {self.architecture.causal_lm} has no prefix "
                        f"{name.removesuffix(expected)!r}, so save the model without what wraps it, or rename the "
                        "tensors"
                    )
        if missing == HEAD and EMBEDDING in stored:
            return CheckpointError(
                f"config.json does not tie the embeddings, but {HEAD} is not stored, for which transformers draws "
                "random numbers: set tie_word_embeddings to true if the model shares them, else add the head"
            )
        return refusals.missing(missing)

    def neuron_cost(self, layer: LayerShape) -> int:
        """Parameters that go with one neuron of a layer's width."""
        return self.neuron_parameters

    @property
    def neuron_parameters(self) -> int:
        """Parameters of one intermediate neuron: its gate row, up row and down column (and two biases)."""
        return 3 * self.hidden + 2 * self.mlp_bias

    @property
    def decoder_parameters(self) -> int:
        """Parameters of all decoder layers."""
        return sum(map(self.layer_parameters, self.layers))

    @property
    def outside_parameters(self) -> int:
        """Parameters outside the decoder layers: embeddings (tied ones once), final norm, head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, tied embeddings counted once."""
        return self.decoder_parameters + self.outside_parameters


def tensor_path(role: Role) -> str:
    """Name in its layer of the tensor that has a role."""
    return ROLE_NAMES.get(role, role)


def role_of(path: str) -> Role:
    """Role of a tensor by its name in its layer: the short name if it has one, else that name."""
    return _ROLES.get(path, path)


def tensor_name(index: int, role: Role) -> str:
    """Checkpoint name of a tensor of decoder layer ``index``."""
    return f"{LAYERS}.{index}.{ROLE_NAMES[role]}"


LAYERS = "model.layers"
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def embedding_name(stored: Container[str]) -> str:
    """Which of the stored tensors embeds tokens: a tied model may keep its head instead."""
    return EMBEDDING if EMBEDDING in stored else HEAD


def head_name(stored: Container[str], tied: bool) -> str:
    """Which of the stored tensors is the unembedding; a tied model's head is its embedding, whatever else is stored."""
    return HEAD if HEAD in stored and not tied else embedding_name(stored)
