"""What scripts share that keep a result a file, and make a page of all of them."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmfold.environment import machine_words, versions


def store(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result with the machine and the versions that made it."""
    about = {"machine": f"{machine_words()} of {os.cpu_count()} CPUs", "versions": versions()}
    path.write_text(json.dumps({**found, **about}, indent=1) + "\n", encoding="utf-8")


def place(found: Mapping[str, Any]) -> str:
    """Machine and versions of a result, in words."""
    return f"{found['machine']}; " + ", ".join(f"{name} {number}" for name, number in found["versions"].items())


def command_line(
    about: str | None,
    describe: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None],
    page: Callable[[], None],
) -> None:
    """Do ``run`` with options that all such scripts have and those that ``describe`` adds, or write the ``page``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    runs = parts.add_parser("run", help="run what does not stand yet")
    runs.add_argument("folder", type=Path, help="the dense model")
    runs.add_argument("--name", required=True, help="of the results")
    runs.add_argument("--note", default="", help="what to know of the model, for the page")
    runs.add_argument("--length", type=int, default=1024, help="tokens of a scored window")
    runs.add_argument("--device", default="auto", help="where to compute (default: CUDA where present, else the CPU)")
    describe(runs)
    parts.add_parser("page", help="write the tables")
    arguments = parser.parse_args()
    if arguments.part == "page":
        page()
    else:
        run(arguments)
