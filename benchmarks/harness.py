"""What all benchmarks share: sizes, planted rows, interleaved timing, the machine's own limits, Markdown tables."""

import argparse
import gc
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

SEPARATION, NOISE, SKEW = 1.0, 0.3, 3.0
PACKAGES = ("torch", "triton", "numpy", "scipy", "scikit-learn", "faiss-cpu", "fastkmeans", "flash-kmeans")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_WARM_SECONDS = 5.0
TWINS = "On this device llmfold_kernels runs its torch twins, made to be read and not for speed."


@dataclass(frozen=True)
class Size:
    """Rows, features per row, clusters, and tokens of the repair's problems."""

    n: int
    d: int
    k: int
    tokens: int


SIZES = {
    "tiny": Size(301, 384, 240, 512),
    "small": Size(2752, 3072, 2202, 2048),
    "llama-7b": Size(11008, 12288, 8806, 16384),
}


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: as printed.
        prepare: makes the call to time from the inputs; raises ImportError where a package is missing.
        flops, nbytes: least arithmetic and memory traffic of the work itself, for rates.
        judge: turns the result into the text of the last column.
    """

    name: str
    prepare: Callable[[], Callable[[], object]]
    flops: float = 0.0
    nbytes: float = 0.0
    judge: Callable[[object], str] = lambda _: ""


@dataclass
class Row:
    """Times of one contender in seconds, and what is said of it."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    note: str = ""


def planted(size: Size, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make k normal centres, one row each; the other n - k rows go to centre floor(k u^3), so that sizes are skewed."""
    generator = torch.Generator().manual_seed(seed)
    centres = SEPARATION * torch.randn(size.k, size.d, generator=generator)
    extra = (torch.rand(size.n - size.k, generator=generator) ** SKEW * size.k).long().clamp_(max=size.k - 1)
    rows = centres[torch.cat([torch.arange(size.k), extra])]
    rows += NOISE * torch.randn(size.n, size.d, generator=generator)
    return rows[torch.randperm(size.n, generator=generator)].to(dtype).to(device)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="llama-7b on CUDA, small elsewhere")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contenders whose name holds one of these words")
    parser.add_argument("--output", type=Path, help="folder for the Markdown table; standard output when left out")
    return parser


def size_name(options: argparse.Namespace) -> str:
    """Name of the chosen size, or of the default of the device."""
    return options.size or ("llama-7b" if options.device.startswith("cuda") else "small")


def size_of(options: argparse.Namespace) -> Size:
    """The chosen size, or the default of the device."""
    return SIZES[size_name(options)]


def wanted(name: str, options: argparse.Namespace) -> bool:
    """Whether a contender is among those that were asked for."""
    return not options.only or any(word in name for word in options.only)


def wait(device: torch.device) -> None:
    """Return when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(call: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Seconds of one call, to the end of its work on the device, and its result."""
    wait(device)
    start = time.perf_counter()
    result = call()
    wait(device)
    return time.perf_counter() - start, result


def measure(contenders: Sequence[Contender], repeats: int, device: torch.device) -> list[Row]:
    """Time all contenders in turns, so that what else the machine does falls on all alike.

    The first call of each is judged and not timed, unless it takes longer than a few seconds: then nothing is gained by
    warming up, and it counts.
    """
    rows, calls = [Row(contender) for contender in contenders], {}
    for row in rows:
        print(row.contender.name, file=sys.stderr, flush=True)
        try:
            calls[row.contender.name] = row.contender.prepare()
            seconds, result = once(calls[row.contender.name], device)
        except ImportError as error:
            row.note = f"not run: {error}"
            continue
        except Exception as error:  # a contender that fails is a line of the table, not the end of it
            calls.pop(row.contender.name, None)
            row.note = f"failed: {type(error).__name__}: {public(str(error)).partition(chr(10))[0][:80]}"
            continue
        row.note = row.contender.judge(result)
        if seconds > _WARM_SECONDS:
            row.seconds.append(seconds)
        del result
        gc.collect()
    for _ in range(repeats):
        for row in rows:
            if row.contender.name in calls and len(row.seconds) < repeats:
                row.seconds.append(once(calls[row.contender.name], device)[0])
    return rows


def medians(rows: Sequence[Row]) -> dict[str, float]:
    """Median seconds by contender, of those that ran."""
    return {row.contender.name: statistics.median(row.seconds) for row in rows if row.seconds}


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of torch's own product of this dtype, the best of five."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(dtype)
    a @ a.T
    return max(2 * side**3 / once(lambda: a @ a.T, device)[0] for _ in range(5))


def copy_rate(device: torch.device) -> float:
    """Bytes per second read and written by a large copy, the best of five."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return max(2 * source.nbytes / once(lambda: target.copy_(source), device)[0] for _ in range(5))


def device_name(device: torch.device) -> str:
    """Name of the device as the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return f"{cpu}, {torch.get_num_threads()} threads"


def installed() -> str:
    """Versions of all packages that take part."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def table(rows: Sequence[Row], flops_rate: float, bytes_rate: float) -> list[str]:
    """Markdown table of all rows; the share is of the limit that binds: arithmetic or memory."""
    lines = [
        "| contender | median ms | min–max ms | TFLOP/s | GB/s | share of limit | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row.seconds:
            lines.append(f"| {row.contender.name} | – | – | – | – | – | {row.note} |")
            continue
        median = statistics.median(row.seconds)
        flops, nbytes = row.contender.flops / median, row.contender.nbytes / median
        share = max(flops / flops_rate, nbytes / bytes_rate)
        cells = [
            row.contender.name,
            f"{1e3 * median:.3g}" if median < 1 else f"{1e3 * median:.0f}",
            f"{1e3 * min(row.seconds):.4g}–{1e3 * max(row.seconds):.4g}",
            f"{flops / 1e12:.3g}" if flops else "–",
            f"{nbytes / 1e9:.3g}" if nbytes else "–",
            f"{100 * share:.0f} %" if share else "–",
            row.note,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def public(text: str) -> str:
    """Text without absolute paths, which are a machine's own: of each only the last name is left."""
    return re.sub(r"(?<![^\s='\"])/(?:\S*/)?([^\s/]+)", r"\1", text)


def command(words: Sequence[str]) -> str:
    """The command that made a table."""
    return shlex.join(["python", f"benchmarks/{Path(words[0]).name}", *map(public, words[1:])])


def run(
    name: str,
    title: str,
    about: str,
    contenders: Sequence[Contender],
    options: argparse.Namespace,
    after: Callable[[list[Row]], list[str]] = lambda _: [],
) -> None:
    """Time the contenders and write ``name``.md into the output folder, or print it."""
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    chosen = [c for c in contenders if wanted(c.name, options)]
    rows = measure(chosen, options.repeats, device)
    flops_rate, bytes_rate = matmul_rate(dtype, device), copy_rate(device)
    lines = [
        f"# {title}",
        "",
        about,
        *([TWINS] if device.type != "cuda" and any("llmfold_kernels" in c.name for c in chosen) else []),
        f"Seed {options.seed}, {options.repeats} repeats in turns. Limits measured in the same run: torch product in "
        f"{options.dtype} {flops_rate / 1e12:.3g} TFLOP/s, copy {bytes_rate / 1e9:.3g} GB/s.",
        "",
        *table(rows, flops_rate, bytes_rate),
        "",
        *after(rows),
        f"Command: `{command(sys.argv)}`",
        "",
        f"{device_name(device)}; Python {platform.python_version()}, {installed()}",
    ]
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{name}.md").write_text(text, encoding="utf-8")
    else:
        print(text, end="")
