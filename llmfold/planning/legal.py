"""Legal shapes: which MLP widths and head counts a stock config can express."""

from llmfold.architectures import LayerShape, ModelShape

WIDE, WIDE_MULTIPLE = 1024, 128


def width_multiple(intermediate: int, requested: int | None) -> int:
    """Granularity of an MLP width: engines are faster on multiples of 128, narrow layers are kept exact."""
    return min(requested or (WIDE_MULTIPLE if intermediate >= WIDE else 1), intermediate)


def snap(intermediate: int, kept: float, multiple: int) -> int:
    """Legal width nearest to ``kept * intermediate``: a multiple of ``multiple``, at least one of it, at most all."""
    target = kept * intermediate
    below = int(target // multiple) * multiple
    legal = {multiple, max(below, multiple), below + multiple, intermediate}
    return min((w for w in legal if w <= intermediate), key=lambda w: (abs(w - target), -w))


def head_options(shape: ModelShape, layer: LayerShape) -> list[tuple[int, int]]:
    """Legal (query heads, KV heads) of a layer, widest first.

    Whole KV groups go; where a single KV head serves all query heads (MQA), query heads go instead. A family whose
    config wants the head count to divide the hidden size is restricted to such counts, unless another can hold it.
    """
    if layer.kv_heads > 1:
        options = [(g * layer.group_size, g) for g in range(layer.kv_heads, 0, -1)]
    else:
        options = [(h, 1) for h in range(layer.heads, 0, -1)]
    return [o for o in options if o[0] == layer.heads or heads_are_legal(shape, o[0])]


def heads_are_legal(shape: ModelShape, heads: int) -> bool:
    """Whether some stock config can express ``heads`` query heads for this model."""
    family = shape.architecture
    divides = not family.heads_divide_hidden or shape.hidden % heads == 0
    return divides or (family.fallback is not None and not shape.biased)
