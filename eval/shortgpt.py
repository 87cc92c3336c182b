r"""Leave out whole blocks as ShortGPT does, in memory, and score the model beside the folds of ``eval/real_model.py``.

    python eval/shortgpt.py run MODEL --name smollm2 --fraction 0.187 \
        --data wikipedia-train.txt.xz --num-samples 256 --sequence-length 256 \
        --text wikitext-2-raw-v1-test.txt:31-130 --text tinystories-validation-head.txt:1-100
    python eval/shortgpt.py page

ShortGPT (Men et al., 2024, arXiv 2403.03853) says of a block how much it turns the residual stream: its influence is 1
minus the cosine between a state before it and after, averaged over calibration tokens (equation 1). The blocks of least
influence go, all at once, and nothing is repaired. Blocks are coarse: as many go as come nearest to the fraction.

Any model of transformers whose layers are all alike and stand in ``model.model.layers`` will do.
"""

import argparse
from typing import Any

import rivals
import torch
from keeping import command_line
from real_model import DROPPING, page
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from llmfold.models import ModelShape
from llmfold.runtime.hidden_states import CHUNK


@torch.inference_mode()
def influences(model: Any, tokens: Tensor) -> Tensor:
    """Influence of every block: (blocks,), float64.

    Args:
        model: a causal language model of transformers in evaluation mode.
        tokens: (sequences, length) to calibrate on.
    """
    layers = model.model.layers
    turned = torch.zeros(len(layers), dtype=torch.float64)

    def hook(index: int) -> Any:
        def add(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            turned[index] += (1 - cosine_similarity(arguments[0], output, dim=-1)).double().sum().cpu()

        return add

    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    for part in tokens.split(CHUNK):
        model.model(part.to(model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return turned / tokens.numel()


def leave_out(model: Any, tokens: Tensor, count: int) -> list[int]:
    """Take the ``count`` blocks of least influence out of a model, in place; returns their indices, ascending."""
    out = sorted(influences(model, tokens).argsort()[:count].tolist())
    model.model.layers = nn.ModuleList(layer for index, layer in enumerate(model.model.layers) if index not in out)
    model.config.num_hidden_layers -= count
    return out


def shortened(arguments: argparse.Namespace) -> None:
    """Leave blocks out of the model and score it, unless the result is there already."""

    def change(model: Any, tokens: Tensor, shape: ModelShape) -> dict[str, Any]:
        blocks = len(shape.layers)
        out = leave_out(model, tokens, round(arguments.fraction * blocks))
        return {"blocks": out, "removed_decoder": len(out) / blocks}

    rivals.run(arguments, rivals.case_of(arguments, DROPPING), change)


if __name__ == "__main__":
    command_line(__doc__, rivals.describe, shortened, page)
