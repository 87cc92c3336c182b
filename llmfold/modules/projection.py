"""Shortcuts that pad channels with zeros (option A of He et al. 2016), written as the projections that they are.

A padded shortcut ties each channel before it to one after it, so that neither side could be narrowed alone. As a 1 × 1
convolution of zeros and ones it gives the same, and is a consumer and a producer as any other.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

_PADS = (F.pad, torch._C._nn.pad)


def with_projections(module: nn.Module, example_inputs: Sequence[Any]) -> nn.Module:
    """The module, or where it pads channels a graph of it in which convolutions do that.

    Parameters are shared with the module. A module that ``torch.fx`` cannot follow is given back as it is: its padded
    channels are kept then.
    """
    try:
        graph = fx.symbolic_trace(module)
    except Exception:  # whatever the module's own code makes of a tracer
        return module
    padding = [node for node in graph.graph.nodes if node.op == "call_function" and node.target in _PADS]
    if not padding:
        return module
    with torch.no_grad():
        ShapeProp(graph).propagate(*example_inputs)
    padded = [node for node in padding if _channels(node) is not None]
    for number, node in enumerate(padded):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before, after = _channels(node) or (0, 0)
        name = f"projection{number}"
        known = source.meta["tensor_meta"]
        layer = _projection(known.shape[1], before, after).to(next(module.parameters()).device, known.dtype)
        graph.add_submodule(name, layer)
        with graph.graph.inserting_after(node):
            node.replace_all_uses_with(graph.graph.call_module(name, (source,)))
        graph.graph.erase_node(node)
    graph.recompile()
    return graph.eval() if padded else module


def _channels(node: fx.Node) -> tuple[int, int] | None:
    """Channels of zeros before and after images, None where a node pads something else, or with something else."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.meta["tensor_meta"].shape) != 4:
        return None
    sizes = tuple(node.args[1] if len(node.args) > 1 else node.kwargs["pad"])  # type: ignore[arg-type]
    mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    if mode != "constant" or value or len(sizes) != 6 or any(sizes[:4]):
        return None
    return int(sizes[4]), int(sizes[5])


def _projection(channels: int, before: int, after: int) -> nn.Conv2d:
    weight: Tensor = F.pad(torch.eye(channels), (0, 0, before, after))
    layer = nn.Conv2d(channels, len(weight), 1, bias=False)
    layer.weight = nn.Parameter(weight[:, :, None, None].contiguous())
    return layer
