r"""Prune MLPs by OSSCAR's published code, in memory, and score the model beside the folds of ``eval/real_model.py``.

    git clone https://github.com/mazumder-lab/OSSCAR
    python eval/osscar.py run MODEL --name smollm2 --published OSSCAR --fraction 0.187 --width 1152 \
        --data wikipedia-train.txt.xz --num-samples 256 --sequence-length 256 \
        --text wikitext-2-raw-v1-test.txt:31-130 --text tinystories-validation-head.txt:1-100
    python eval/osscar.py page

OSSCAR (Meng et al., ICML 2024, arXiv 2403.12983) takes neurons out of an MLP by what its output loses once the others
are refit by least squares, a few at a time on the inverse Gram, and refits them, layer after layer on the inputs that
the model pruned so far gives. Its code is for OPT on a GPU; what is run of it here are the functions that choose and
refit, ``OSSCAR_fastprune`` and ``OSSCAR_local_search``, at its own defaults, on the Grams of this model.

Any model of transformers with gated MLPs in ``model.model.layers`` will do.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rivals
import torch
from keeping import command_line
from real_model import SEARCHING, page
from torch import Tensor, nn

from llmfold.models import ModelShape
from llmfold.runtime.hidden_states import CHUNK

RIDGE, AT_ONCE = 1e-2, 10
"""``lambda2``, a share of the mean diagonal, and neurons that go at once, ``update_iter``: as opt_prune.py has them."""
ITERATIONS = 30
"""Of the local search, ``local_iter``."""
Solver = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Consumer rows (n, d), Gram (n, n), products (n, d) and a width to rows of which the others are zero."""


def published(folder: Path, *, search: bool) -> Solver:
    """The functions of a checkout of the code."""
    sys.path.insert(0, str(folder))
    code = importlib.import_module("prune_algo")

    def solve(rows: Tensor, gram: Tensor, products: Tensor, width: int) -> Tensor:
        found, _ = code.OSSCAR_fastprune(rows.clone(), gram, products, len(rows), width, AT_ONCE)
        if search:
            found, _ = code.OSSCAR_local_search(found, gram, products, len(rows), ITERATIONS, AT_ONCE)
        return found

    return solve


class _EnoughError(Exception):
    """The first layer has been reached."""


@torch.inference_mode()
def first_inputs(model: Any, tokens: Tensor) -> list[tuple[Tensor, dict[str, Any]]]:
    """States before the first layer, with whatever else layers are given, in chunks of sequences."""
    found: list[tuple[Tensor, dict[str, Any]]] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...], others: dict[str, Any]) -> None:
        found.append((arguments[0], others))
        raise _EnoughError

    with model.model.layers[0].register_forward_pre_hook(keep, with_kwargs=True):
        for part in tokens.split(CHUNK):
            try:
                model.model(part.to(model.device), use_cache=False)
            except _EnoughError:
                continue
    return found


@torch.inference_mode()
def prune(model: Any, tokens: Tensor, width: int, solve: Solver) -> None:
    """Narrow every MLP of a model, in place, on tokens (sequences, length)."""
    given = first_inputs(model, tokens)
    for number, layer in enumerate(model.model.layers):
        down: nn.Linear = layer.mlp.down_proj
        gram = torch.zeros(down.in_features, down.in_features, device=down.weight.device)

        def add(_: nn.Module, arguments: tuple[Tensor, ...], gram: Tensor = gram) -> None:
            rows = arguments[0].flatten(0, 1).float()
            gram += rows.T @ rows

        with down.register_forward_pre_hook(add):
            for states, others in given:
                layer(states, **others)
        rows = down.weight.T.float().clone()
        rows[gram.diagonal() == 0] = 0
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
        found = solve(rows, gram, gram @ rows, width)
        kept = found.abs().sum(1).nonzero().flatten()
        for name in ("gate_proj", "up_proj"):
            projection = getattr(layer.mlp, name)
            projection.weight = nn.Parameter(projection.weight[kept])
        down.weight = nn.Parameter(found[kept].T.to(down.weight.dtype).contiguous())
        given = [(layer(states, **others), others) for states, others in given]
        print(f"layer {number}: {len(kept)} neurons", end="\r", flush=True)


def describe(runs: argparse.ArgumentParser) -> None:
    """Options of this script."""
    rivals.describe(runs)
    runs.add_argument("--published", type=Path, required=True, help="checkout of the published code")
    runs.add_argument("--width", type=int, required=True, help="neurons to keep in every layer")
    runs.add_argument("--local-search", action="store_true", help="exchange neurons afterwards, as --local_fc there")


def pruned(arguments: argparse.Namespace) -> None:
    """Prune the model and score it, unless the result is there already."""
    solve = published(arguments.published.resolve(), search=arguments.local_search)

    def change(model: Any, tokens: Tensor, shape: ModelShape) -> dict[str, Any]:
        prune(model, tokens, arguments.width, solve)
        left = sum(parameter.numel() for parameter in model.model.layers.parameters())
        return {"removed_decoder": 1 - left / shape.decoder_parameters}

    rivals.run(arguments, rivals.case_of(arguments, SEARCHING, "local_search"), change)


if __name__ == "__main__":
    command_line(__doc__, describe, pruned, page)
