"""``self``, ``calibrated`` and ``weights``: every layer narrowed so that it gives what it gave.

They differ in the hidden states that they measure on: of text that the model writes, of a text that is given, and of a
population that the weights imply.
"""

from collections.abc import Mapping
from typing import Any

from llmfold.errors import UsageError
from llmfold.methods.method import Method
from llmfold.registry import SELF_DATA, Parallel, register_method

_SENTENCE = (
    "Units are chosen by the error of their layer's output after repair, measured on {}; "
    "what reads them is refit in closed form"
)


class _OnTokens(Method):
    """On token sequences."""

    summary = "units chosen by output error after repair, consumers refit by least squares"
    options = frozenset(("refine", "num_samples", "sequence_length", "effort", "depth"))
    measures = weighs = by_pieces = random = True
    plain_only = False
    parallel = Parallel.ROWS
    builder = f"{__name__}.build:from_tokens"
    block_builder = f"{__name__}.build:blocks_on_tokens"
    estimator = f"{__name__}.cost:tokens_cost"


@register_method("self")
class OwnTokens(_OnTokens):
    """On tokens that the model samples."""

    sentence = _SENTENCE.format("tokens sampled from the base model itself")
    samples = True


@register_method("calibrated")
class GivenTokens(_OnTokens):
    """On a text that is given."""

    sentence = _SENTENCE.format("outside text")
    needs_data = True

    def check(self, options: Mapping[str, Any]) -> None:
        """The model's own tokens are another method."""
        if options["data"] == SELF_DATA:
            raise UsageError("--method calibrated wants outside text: for tokens of the model's own use --method self")


@register_method("weights")
class FromWeights(Method):
    """On a population of residual vectors that the weights imply; no token is ever processed."""

    summary = "units chosen by output error after repair, on inputs that the weights imply"
    sentence = _SENTENCE.format("residual vectors drawn from what the weights imply")
    options = frozenset(("effort",))
    measures = by_pieces = random = True
    plain_only = False
    parallel = Parallel.ROWS
    builder = f"{__name__}.build:from_weights"
    estimator = f"{__name__}.cost:population_cost"
