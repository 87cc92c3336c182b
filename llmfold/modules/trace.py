"""From a module to its couplings: ``torch.export`` gives every operation, and each is known to keep channels or not.

What is not known keeps the channels that go into it, with a sentence; nothing is guessed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from llmfold.errors import UsageError
from llmfold.modules.coupling import Couplings
from llmfold.modules.rules import RULES, Layout, Operation, known_name
from llmfold.modules.ties import Ties


def couplings_of(module: nn.Module, example_inputs: Sequence[Any]) -> Couplings:
    """Couplings of a module, as ``torch.export`` sees it on the example inputs.

    Args:
        module: in evaluation.
        example_inputs: positional arguments of its forward pass.

    Raises:
        UsageError: torch.export cannot trace the module on these inputs.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(module, tuple(example_inputs))
    except Exception as error:  # torch.export raises what it likes, of the module's own code too
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"torch.export cannot trace the module on these inputs: {reason}") from error
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    ties = Ties()
    layouts: dict[fx.Node, Layout | None] = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            layouts[node] = _apply(node, layouts, stored, ties)
        elif node.op == "output":
            for source in node.all_input_nodes:
                _freeze(ties, layouts.get(source), "it is an output of the module")
    return ties.couplings()


def _apply(node: fx.Node, layouts: dict[fx.Node, Layout | None], stored: dict[str, str], ties: Ties) -> Layout | None:
    """Layout of what a node gives; ties, places and what is kept are noted on the way."""
    sources = [layouts.get(source) for source in node.all_input_nodes]
    name = known_name(node.target)
    rule = RULES.get(name)
    reads_weights = any(source.name in stored for source in node.all_input_nodes)
    if rule is None or not isinstance(node.meta.get("val"), Tensor):
        for layout in sources:
            _freeze(ties, layout, f"{name} is not understood")
        return None
    if not any(sources) and not reads_weights:
        return None
    operation = Operation(node, tuple(node.args), dict(node.kwargs), layouts, stored, ties)
    layout = rule(operation)
    if layout is None:
        for source in sources:
            _freeze(ties, source, f"{name} does not keep channels apart here")
    return layout


def _freeze(ties: Ties, layout: Layout | None, why: str) -> None:
    if layout is not None:
        ties.freeze(layout.channels, why)
