"""Options of whatever measures perplexity and fidelity, and how they are spelled."""

import shlex
from dataclasses import Field, dataclass
from typing import Any

from llmfold.config import COMPUTE_DTYPE
from llmfold.evaluation.defaults import FIDELITY_TOKENS
from llmfold.kinds import TEXT, integer
from llmfold.options import Option, command_words, option, options_of, public_file

MEASURING = "measuring"
HEADING = {MEASURING: "how to measure"}


def options_in_order(cls: Any) -> "list[tuple[Field[Any], Option]]":
    """Options of a dataclass, those of measuring behind those of the command itself."""
    return sorted(options_of(cls), key=lambda pair: pair[1].group == MEASURING)


def evaluation_command(settings: Any) -> str:
    """The command line of an evaluation, files and folders by their names only."""
    words = command_words(options_in_order(settings), vars(settings), lambda _, value: public_file(str(value)))
    return shlex.join(["llmfold", "eval", *words])


def compute_dtype(default: str) -> Any:
    """Dtype of all arithmetic, see :func:`llmfold.runtime.devices.compute_dtype`."""
    text = "float32, bfloat16, float16, or auto: as stored where the device multiplies that, else float32"
    return option(text, COMPUTE_DTYPE, MEASURING, default, aliases=("--dtype",))


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How to measure."""

    sequence_length: int | None = option(
        "tokens in a window (default: 2048 or the model's maximum)", integer(2), MEASURING, None
    )
    stride: int | None = option("tokens between windows (default: they do not overlap)", integer(1), MEASURING, None)
    windows: int | None = option("score the first N windows only (default: all)", integer(1), MEASURING, None)
    device: str = option("torch device (default: auto, CUDA when present)", TEXT, MEASURING, "auto")
    fidelity_tokens: int = option(
        "tokens to sample from the dense model, on which models are compared; 0: none",
        integer(0),
        MEASURING,
        FIDELITY_TOKENS,
    )

    def cut(self) -> dict[str, int | None]:
        """How a text is cut, as arguments of :func:`llmfold.evaluation.perplexity.text_windows`."""
        return {"length": self.sequence_length, "stride": self.stride, "limit": self.windows}
