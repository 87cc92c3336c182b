"""``llmfold env``: versions and machine, for reports of bugs."""

from typing import Any

from llmfold.commands import Command
from llmfold.commands.parser import finish


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "env",
        help="print versions and machine, for reports of bugs",
        description="Print what decides results: versions, machine, memory, kernels. It names no user and no folder.",
    )
    finish(parser, Command(run))


def run(options: dict[str, Any]) -> None:
    """Print versions and machine."""
    for name, value in facts().items():
        print(f"{name}: {value}")


def facts() -> dict[str, str]:
    """What decides results, by name."""
    from llmfold.environment import machine_words, versions
    from llmfold.runtime.limits import available_memory
    from llmfold.sizes import human_bytes

    packages = versions("huggingface_hub", "triton", "datasets", "lm_eval")
    return packages | {
        "machine": machine_words(),
        "memory": f"{human_bytes(available_memory())} free to this process",
    }
