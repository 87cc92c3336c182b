"""Time and quality of clusterings of planted near-duplicates, against scikit-learn, as a Markdown table.

python kernels/benchmarks/clustering.py --n 2752 --d 3072 --k 2202 --output clustering.md
"""

import argparse
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from llmfold.clustering import (
    Method,
    cluster,
    gram,
    inertia_of_rows,
    mst_bound,
    squared_distances,
)

SEPARATION, NOISE, SKEW = 1.0, 0.3, 3.0


@dataclass(frozen=True)
class Row:
    """One line of the table; no labels means the contender did not run."""

    name: str
    seconds: list[float]
    inertia: float | None = None
    note: str = ""


def planted(n: int, d: int, k: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Make k normal centres, one row each; the other n - k rows go to centre floor(k u^3), so that sizes are skewed."""
    generator = torch.Generator().manual_seed(seed)
    centres = SEPARATION * torch.randn(k, d, generator=generator)
    extra = (torch.rand(n - k, generator=generator) ** SKEW * k).long().clamp_(max=k - 1)
    rows = centres[torch.cat([torch.arange(k), extra])]
    rows += NOISE * torch.randn(n, d, generator=generator)
    return rows[torch.randperm(n, generator=generator)].to(dtype)


def ours(method: Method, rows: Tensor, k: int, seed: int) -> Callable[[], Tensor]:
    """Gram, distances and clustering, without the certificate."""
    return lambda: cluster([rows], k, method=method, seed=seed, certificate=False).labels


def sklearn_ward(rows: Tensor, k: int, components: int | None, seed: int) -> Callable[[], Tensor]:
    """Ward as nanguoyu/model-folding-universal runs it (PCA first), or without PCA."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.decomposition import PCA

    points = rows.float().numpy()

    def run() -> Tensor:
        reduced = points if components is None else PCA(components, random_state=seed).fit_transform(points)
        return torch.from_numpy(AgglomerativeClustering(k, linkage="ward").fit_predict(reduced)).long()

    return run


def sklearn_kmeans(rows: Tensor, k: int, seed: int) -> Callable[[], Tensor]:
    """One k-means++ start and Lloyd."""
    from sklearn.cluster import KMeans

    points = rows.float().numpy()
    model = KMeans(k, init="k-means++", n_init=1, algorithm="lloyd", random_state=seed)
    return lambda: torch.from_numpy(model.fit_predict(points)).long()


def measure(name: str, prepare: Callable[[], Callable[[], Tensor]], rows: Tensor, k: int, repeats: int) -> Row:
    """Run a contender ``repeats`` times; the inertia is taken from the original rows by the same function for all."""
    try:
        run = prepare()
    except ImportError as error:
        return Row(name, [], note=f"not run: {error.name} is not installed")
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        labels = run()
        seconds.append(time.perf_counter() - start)
    found = int(torch.bincount(labels).count_nonzero())
    return Row(name, seconds, inertia_of_rows([rows], labels), "" if found == k else f"{found} clusters")


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str:
    """Package and version, or that it is missing."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def table(results: list[Row], bound: float) -> list[str]:
    """Render the Markdown table."""
    lines = ["| method | median s | min–max s | inertia | inertia / MST bound | note |", "|---|---|---|---|---|---|"]
    for row in results:
        if row.inertia is None:
            cells = ["–"] * 4
        else:
            spread = f"{min(row.seconds):.3f}–{max(row.seconds):.3f}"
            ratio = f"{row.inertia / bound:.4f}" if bound > 0 else "–"
            cells = [f"{statistics.median(row.seconds):.3f}", spread, f"{row.inertia:.6g}", ratio]
        lines.append("| " + " | ".join([row.name, *cells, row.note]) + " |")
    return lines


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2752, help="rows")
    parser.add_argument("--d", type=int, default=3072, help="features per row")
    parser.add_argument("--k", type=int, default=2202, help="clusters planted and asked for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the rows")
    parser.add_argument("--components", type=int, help="PCA components before scikit-learn's Ward; min(n, d, 128)")
    parser.add_argument("--output", type=Path, help="Markdown file; standard output when left out")
    options = parser.parse_args()
    if not 1 <= options.k <= options.n or options.repeats < 1 or options.d < 1:
        parser.error("needs 1 <= k <= n, d >= 1 and repeats >= 1")
    return options


def main() -> None:
    """Run all contenders on the same rows and write the table."""
    options = arguments()
    n, d, k, seed = options.n, options.d, options.k, options.seed
    components = options.components or min(n, d, 128)
    rows = planted(n, d, k, seed, getattr(torch, options.dtype))
    contenders: list[tuple[str, Callable[[], Callable[[], Tensor]]]] = [
        ("llmfold Gram + Ward", lambda: ours("ward", rows, k, seed)),
        ("llmfold Gram + Ward + Hartigan", lambda: ours("hartigan", rows, k, seed)),
        ("llmfold Gram k-means (++, Lloyd)", lambda: ours("kmeans", rows, k, seed)),
        (f"scikit-learn PCA({components}) + Ward", lambda: sklearn_ward(rows, k, components, seed)),
        ("scikit-learn Ward", lambda: sklearn_ward(rows, k, None, seed)),
        ("scikit-learn KMeans (++, Lloyd)", lambda: sklearn_kmeans(rows, k, seed)),
    ]
    results = []
    for name, prepare in contenders:
        print(name, file=sys.stderr, flush=True)
        results.append(measure(name, prepare, rows, k, options.repeats))
    bound = mst_bound(squared_distances([rows], gram([rows])), k)
    lines = [
        "# Clustering near-duplicates",
        "",
        f"n = {n}, d = {d}, k = {k}, {options.dtype}, {options.repeats} repeats, seed {seed}; planted: {k} normal",
        f"centres, noise {NOISE} of their spread, skewed sizes. Inertia is computed from the original rows for all.",
        f"MST bound: {bound:.6g}.",
        "",
        *table(results, bound),
        "",
        f"Command: `python {shlex.join(sys.argv)}`",
        "",
        f"{cpu_model()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        + ", ".join(installed(package) for package in ("torch", "numpy", "scipy", "scikit-learn")),
    ]
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
