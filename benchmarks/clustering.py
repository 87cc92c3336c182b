"""Clustering of a whole layer's neurons, against one full product at the machine's own rate and against peers.

python benchmarks/clustering.py --size llama-7b --device cpu --only torch "Gram + Ward" PCA --repeats 3
"""

from collections.abc import Callable

import torch
from harness import DTYPES, Contender, Row, Size, arguments, medians, planted, run, size_of
from torch import Tensor

from llmfold.clustering import Method, cluster, gram, inertia_of_rows, mst_bound, squared_distances

FULL, OURS, PEER = "torch full n x n x d product", "llmfold Gram + Ward", "scikit-learn PCA"


def ours(method: Method, rows: Tensor, k: int, seed: int) -> Callable[[], object]:
    """Gram, distances and clustering, with the inertia and without the certificate."""
    return lambda: cluster([rows], k, method=method, seed=seed, certificate=False).labels


def sklearn_ward(rows: Tensor, k: int, components: int | None, seed: int) -> Callable[[], object]:
    """Ward as nanguoyu/model-folding-universal runs it (PCA first), or without PCA."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.decomposition import PCA

    points = rows.float().cpu().numpy()

    def call() -> Tensor:
        reduced = points if components is None else PCA(components, random_state=seed).fit_transform(points)
        return torch.from_numpy(AgglomerativeClustering(k, linkage="ward").fit_predict(reduced)).long()

    return call


def sklearn_kmeans(rows: Tensor, k: int, seed: int) -> Callable[[], object]:
    """One k-means++ start and Lloyd."""
    from sklearn.cluster import KMeans

    points = rows.float().cpu().numpy()
    model = KMeans(k, init="k-means++", n_init=1, algorithm="lloyd", random_state=seed)
    return lambda: torch.from_numpy(model.fit_predict(points)).long()


def faiss_kmeans(rows: Tensor, k: int, seed: int) -> Callable[[], object]:
    """Lloyd from random rows, all points used."""
    import faiss

    points = rows.float().cpu().numpy()

    def call() -> Tensor:
        model = faiss.Kmeans(points.shape[1], k, niter=10, seed=seed, max_points_per_centroid=10**6, gpu=rows.is_cuda)
        model.train(points)
        return torch.from_numpy(model.index.search(points, 1)[1]).flatten().long()

    return call


def fast_kmeans(rows: Tensor, k: int, seed: int) -> Callable[[], object]:
    """fastkmeans, from random rows."""
    from fastkmeans import FastKMeans

    points = rows.float().cpu().numpy()

    def call() -> Tensor:
        model = FastKMeans(points.shape[1], k, niter=10, seed=seed, gpu=rows.is_cuda)
        return torch.from_numpy(model.fit_predict(points)).long()

    return call


def flash_kmeans(rows: Tensor, k: int) -> Callable[[], object]:
    """flash-kmeans, from random rows."""
    from flash_kmeans import batch_kmeans_Euclid

    if not rows.is_cuda:
        raise ImportError("flash-kmeans needs CUDA")
    return lambda: batch_kmeans_Euclid(rows[None], k, max_iters=10)[0][0]


def judged(rows: Tensor, k: int, bound: float) -> Callable[[object], str]:
    """Inertia over its lower bound, from the original rows and by the same function for all."""

    def judge(labels: object) -> str:
        assert isinstance(labels, Tensor)
        found = int(torch.bincount(labels.cpu()).count_nonzero())
        inertia = inertia_of_rows([rows], labels.long())
        ratio = f"inertia / bound {inertia / bound:.4f}" if bound > 0 else f"inertia {inertia:.6g}"
        return ratio if found == k else f"{ratio}, {found} clusters"

    return judge


def ratios(rows: list[Row]) -> list[str]:
    """What the layer costs in full products, and against the published pipeline."""
    seconds, lines = medians(rows), []
    if OURS in seconds and FULL in seconds:
        lines.append(f"{OURS} over one full product: {seconds[OURS] / seconds[FULL]:.3f}.")
    peer = next((name for name in seconds if name.startswith(PEER)), None)
    if OURS in seconds and peer:
        lines.append(f"{OURS} over {peer}: {seconds[OURS] / seconds[peer]:.3f}.")
    return [*lines, ""] if lines else []


def contenders_for(rows: Tensor, size: Size, components: int, seed: int) -> list[Contender]:
    """Everything that can cluster these rows."""
    k = size.k
    bound = mst_bound(squared_distances([rows], gram([rows])), k)
    judge = judged(rows, k, bound)
    triangle = float(size.n) * size.n * size.d
    moved = float(rows.nbytes)

    def entry(name: str, prepare: Callable[[], Callable[[], object]], flops: float = 0.0) -> Contender:
        return Contender(name, prepare, flops, moved if flops else 0.0, judge)

    return [
        Contender(FULL, lambda: lambda: torch.mm(rows, rows.T), 2 * triangle, moved),
        entry(OURS, lambda: ours("ward", rows, k, seed), triangle),
        entry("llmfold Gram + Ward + Hartigan", lambda: ours("hartigan", rows, k, seed), triangle),
        entry("llmfold Gram k-means (++, Lloyd)", lambda: ours("kmeans", rows, k, seed), triangle),
        entry(f"{PEER}({components}) + Ward", lambda: sklearn_ward(rows, k, components, seed)),
        entry("scikit-learn Ward", lambda: sklearn_ward(rows, k, None, seed)),
        entry("scikit-learn KMeans (++, Lloyd)", lambda: sklearn_kmeans(rows, k, seed)),
        entry("FAISS Kmeans, 10 iterations", lambda: faiss_kmeans(rows, k, seed)),
        entry("fastkmeans, 10 iterations", lambda: fast_kmeans(rows, k, seed)),
        entry("flash-kmeans, 10 iterations", lambda: flash_kmeans(rows, k)),
    ]


def main() -> None:
    """Run all contenders on the same rows and write the table."""
    parser = arguments(__doc__)
    parser.add_argument("--components", type=int, help="PCA components before scikit-learn's Ward; min(n, d, 128)")
    options = parser.parse_args()
    size, device, dtype = size_of(options), torch.device(options.device), DTYPES[options.dtype]
    rows = planted(size, options.seed, dtype, device)
    components = options.components or min(size.n, size.d, 128)
    about = (
        f"n = {size.n}, d = {size.d}, k = {size.k}, {options.dtype}; planted: k normal centres, noise of 0.3 of their "
        "spread, skewed sizes. TFLOP/s count n²d operations for llmfold's triangle and 2n²d for the full product."
    )
    contenders = contenders_for(rows, size, components, options.seed)
    run("clustering", "Clustering of a layer's neurons", about, contenders, options, ratios)


if __name__ == "__main__":
    main()
