"""What measured: the machine, and the versions of what decides its numbers."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from llmfold.version import __version__

_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "scipy")


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide the result, and of ``more`` packages."""
    own = {"python": platform.python_version(), "llmfold": __version__}
    return own | {package: _installed(package) for package in (*_PACKAGES, *more)}


@cache
def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """The machine in words: system, processor, threads, accelerator."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine_words() -> str:
    """System, processor, threads and accelerator, e.g. ``Linux x86_64, AMD EPYC 7R13, 1 thread, no accelerator``."""
    threads = torch.get_num_threads()
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    parts = [f"{platform.system()} {platform.machine()}", _processor(), f"{threads} thread{'s' * (threads > 1)}"]
    return ", ".join(part for part in (*parts, accelerator) if part)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
