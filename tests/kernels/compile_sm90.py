"""Compile every kernel as LLaMA-7B would launch it for an H100 or H200, with no GPU, and print what it uses as JSON.

Run in a process of its own: kernels are compiled, so Triton must not have been imported as an interpreter.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from llmfold_kernels.assign import kernel as assign
from llmfold_kernels.centroids import kernel as centroids
from llmfold_kernels.elimination import kernel as elimination
from llmfold_kernels.gram import kernel as gram
from llmfold_kernels.ward import kernel as ward

NEURONS, HIDDEN, KEPT = 11008, 4096, 8806
TARGET = GPUTarget("cuda", 90, 32)
MEMORIES = (("", 99 * 1024), ("wide ", 227 * 1024))
OPTIONS = ("num_warps", "num_stages", "maxnreg")
NAMES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}
NAMES |= {torch.int32: "*i32", torch.int64: "*i64"}


class Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, function: Any) -> None:
        self.function, self.launch = function, None

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def keep(*args: Any, **kwargs: Any) -> None:
            self.launch = (args, kwargs)

        return keep


def _specialise(value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    """Type of an argument; what a launch would know of its value goes into the last two."""
    if isinstance(value, tuple):
        return tuple(_specialise(item, (*path, i), constants, attributes) for i, item in enumerate(value))
    if isinstance(value, Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return NAMES[value.dtype]
    if value == 1:
        constants[path] = 1
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if abs(value) < 2**31 else "i64"


def compiled(recorder: Recorder) -> Any:
    """Compile a recorded launch."""
    assert recorder.launch is not None, recorder.function
    args, kwargs = recorder.launch
    names = recorder.function.arg_names
    constants: dict[Any, Any] = {(names.index(k),): v for k, v in kwargs.items() if k not in OPTIONS}
    attributes: dict[Any, Any] = {}
    signature = {
        n: _specialise(v, (i,), constants, attributes) for i, (n, v) in enumerate(zip(names, args, strict=False))
    }
    signature |= {names[place]: "constexpr" for place, *_ in constants if names[place] not in signature}
    source = triton.compiler.ASTSource(recorder.function, signature, constants, attributes)
    return triton.compile(source, target=TARGET, options={k: v for k, v in kwargs.items() if k in OPTIONS})


def usage(binary: Any) -> dict[str, int]:
    """Shared bytes, registers per thread and spilled bytes, as the assembler counts them."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(binary.asm["ptx"])
        done = subprocess.run(
            [assembler, "-v", "--gpu-name=sm_90a", source, "-o", os.devnull], capture_output=True, text=True, check=True
        )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    assert registers, done.stderr
    spills = sum(int(found) for found in re.findall(r"(\d+) bytes spill", done.stderr))
    tensor_cores = len(re.findall(r"wgmma\.mma_async", binary.asm["ptx"]))
    return {
        "shared": binary.metadata.shared,
        "registers": int(registers[1]),
        "spills": spills,
        "threads": 32 * binary.metadata.num_warps,
        "wgmma": tensor_cores,
    }


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a real layer's size that takes no memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def _with_memory(module: Any, size: int, launch: Callable[[], object]) -> object:
    """Launch as on a GPU whose blocks have so much shared memory."""
    with mock.patch.object(module, "shared_memory", return_value=size):
        return launch()


def launches() -> dict[str, tuple[Any, str, Callable[[], object]]]:
    """By name: the module, its kernel, and a call that launches it."""
    index = [meta(NEURONS, dtype=torch.int32), *(meta(KEPT, dtype=torch.int32) for _ in range(3))]
    vector, square = meta(KEPT), meta(NEURONS, NEURONS)
    found: dict[str, tuple[Any, str, Callable[[], object]]] = {
        "nearest centre": (
            assign,
            "nearest_centre_kernel",
            lambda: assign.nearest_centre(square, *index, vector, vector, meta(NEURONS, dtype=torch.int64)),
        ),
        "row minima": (
            ward,
            "row_minima_kernel",
            lambda: ward.merge_greedily(square[None], meta(1, NEURONS), NEURONS - KEPT),
        ),
        "ward": (ward, "merge_kernel", lambda: ward.merge_greedily(square[None], meta(1, NEURONS), NEURONS - KEPT)),
        "segment sums of the Gram": (
            centroids,
            "segment_sums_kernel",
            lambda: centroids.segment_sums(square, *index, mean=False),
        ),
    }
    for dtype in (torch.float32, torch.float64):
        p, k = meta(NEURONS, NEURONS, dtype=dtype), meta(NEURONS, NEURONS, dtype=dtype)
        for name in ("step_kernel", "first_costs_kernel"):
            found[f"elimination {name} {dtype}"] = (
                elimination,
                name,
                lambda p=p, k=k: elimination.eliminate(p, k, 1),
            )
    for dtype in (torch.bfloat16, torch.float32):
        blocks = [
            meta(NEURONS, HIDDEN, dtype=dtype),
            meta(NEURONS, HIDDEN, dtype=dtype),
            meta(HIDDEN, NEURONS, dtype=dtype).T,
        ]
        rows = meta(NEURONS, 3 * HIDDEN, dtype=dtype)
        for epilogue in gram.EPILOGUES:
            for word, memory in MEMORIES:
                found[f"{word}gram {epilogue} {dtype}"] = (
                    gram,
                    "gram_kernel",
                    lambda b=blocks, e=epilogue, m=memory: _with_memory(
                        gram, m, lambda: gram.gram(b, e, meta(NEURONS))
                    ),
                )
        found[f"row norms {dtype}"] = (gram, "row_norms_kernel", lambda b=blocks: gram.row_norms(b))
        for word, memory in MEMORIES:
            found[f"{word}assign {dtype}"] = (
                assign,
                "assign_rows_kernel",
                lambda x=rows, m=memory: _with_memory(assign, m, lambda: assign.assign_rows(x, x[:KEPT])),
            )
        found[f"segment means {dtype}"] = (
            centroids,
            "segment_sums_kernel",
            lambda x=rows: centroids.segment_sums(x, *index, mean=True),
        )
    return found


def main() -> None:
    """Print a JSON object: kernel -> usage."""
    names = {(module, name) for module, name, _ in launches().values()}
    kernels = {(module, name): getattr(module, name) for module, name in names}
    report = {}
    for title, (module, name, launch) in launches().items():
        for (owner, other), function in kernels.items():
            setattr(owner, other, Recorder(function))
        # Only reading the results back fails where tensors hold no numbers.
        with contextlib.suppress(NotImplementedError):
            launch()
        report[title] = usage(compiled(getattr(module, name)))
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
