"""The machine that measured, in words."""

import platform
from pathlib import Path

import torch


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
