"""The argument parser of all commands."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Complains in one sentence with exit code 2; unset options are absent, and none may be abbreviated."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str | None = None) -> None:
        """See :class:`argparse.ArgumentParser`."""
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and exit with 2."""
        self.exit(2, f"llmfold: {message} (see {self.prog} --help)\n")


def numbers(text: str) -> tuple[float, ...]:
    """Parse ``0.1,0.2``."""
    try:
        return tuple(float(piece) for piece in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor several with commas between") from error


def add_measuring(parser: argparse.ArgumentParser, batch_size: Callable[[str], int | str] | None = None) -> None:
    """Options of what measures perplexity and fidelity; ``batch_size`` reads that option where it may be ``auto``."""
    how = parser.add_argument_group("how to measure")
    how.add_argument("--sequence-length", type=int, help="tokens in a window (default: 2048 or the model's maximum)")
    how.add_argument("--windows", type=int, help="score the first N windows only (default: all)")
    how.add_argument("--stride", type=int, help="tokens between windows (default: they do not overlap)")
    size, dtype = ("auto", "auto") if batch_size else ("8", "float32")
    how.add_argument("--batch-size", type=batch_size or int, help=f"sequences in one forward pass (default: {size})")
    how.add_argument(
        "--compute-dtype",
        "--dtype",
        dest="compute_dtype",
        help="float32, bfloat16, float16, or auto: as stored where the device multiplies that, else float32 "
        f"(default: {dtype})",
    )
    how.add_argument("--device", help="torch device (default: auto, CUDA when present)")
    how.add_argument("--fidelity-tokens", type=int, help="tokens to sample from the dense model (default: 2048)")


def add_talk(parser: argparse.ArgumentParser) -> None:
    """Options of what is printed."""
    talk = parser.add_argument_group("the run")
    talk.add_argument("--quiet", action="store_true", help="print errors only")
    talk.add_argument("--debug", action="store_true", help="show tracebacks")


def tell(message: str) -> None:
    """Progress, on standard error."""
    print(message, file=sys.stderr, flush=True)
