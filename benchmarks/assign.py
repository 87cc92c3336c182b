"""k-means assignment, from the rows and in Gram space, against torch, FAISS, scikit-learn and flash-kmeans.

python benchmarks/assign.py --output results
"""

from collections.abc import Callable

import torch
from harness import DTYPES, Contender, arguments, planted, run, size_of
from torch import Tensor

from llmfold.clustering import gram
from llmfold_kernels import assign_rows, nearest_centre, segment_sums, segments


def torch_chunks(x: Tensor, c: Tensor) -> Tensor:
    """Products, distances and argmin in chunks of rows."""
    norms = c.float().square().sum(1)
    found = [(norms - 2 * (part @ c.T).float()).argmin(1) for part in x.split(2048)]
    return torch.cat(found)


def faiss_search(x: Tensor, c: Tensor) -> Callable[[], object]:
    """Exact search over the centroids."""
    import faiss

    index = faiss.IndexFlatL2(c.shape[1])
    index.add(c.float().cpu().numpy())
    if x.is_cuda:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    points = x.float().cpu().numpy()
    return lambda: torch.from_numpy(index.search(points, 1)[1]).flatten()


def sklearn_argmin(x: Tensor, c: Tensor) -> Callable[[], object]:
    """pairwise_distances_argmin, on the host."""
    from sklearn.metrics import pairwise_distances_argmin

    points, centres = x.float().cpu().numpy(), c.float().cpu().numpy()
    return lambda: torch.from_numpy(pairwise_distances_argmin(points, centres))


def flash(x: Tensor, c: Tensor) -> Callable[[], object]:
    """flash-kmeans' own assignment kernel."""
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    if not x.is_cuda:
        raise ImportError("flash-kmeans' kernel needs CUDA")
    norms = x.float().square().sum(1)[None]
    return lambda: euclid_assign_triton(x[None], c[None], norms)[0]


def main() -> None:
    """Time all contenders."""
    options = arguments(__doc__).parse_args()
    size, device, dtype = size_of(options), torch.device(options.device), DTYPES[options.dtype]
    x = planted(size, options.seed, dtype, device)
    generator = torch.Generator().manual_seed(options.seed + 1)
    labels = (torch.rand(size.n, generator=generator) * size.k).long().to(device)
    labels[torch.randperm(size.n, generator=generator)[: size.k].to(device)] = torch.arange(size.k, device=device)
    parts = segments(labels, size.k)
    centroids = segment_sums(x, parts, mean=True).to(dtype)
    best = assign_rows(x.float(), centroids.float())

    def agreement(result: object) -> str:
        found = result[0] if isinstance(result, tuple) else result
        assert isinstance(found, Tensor)
        same = (found.to(device).long() == best.labels).double().mean()
        return f"{100 * float(same):.2f} % as in float32"

    products = gram([x])
    offset = torch.rand(size.k, device=device) * float(products.diagonal().mean())
    scale = 2 / parts.sizes.clamp(min=1).float()
    flops = 2.0 * size.n * size.k * size.d
    moved = float(x.nbytes + centroids.nbytes)
    contenders = [
        Contender("llmfold_kernels.assign_rows", lambda: lambda: assign_rows(x, centroids), flops, moved, agreement),
        Contender(
            "torch products and argmin in chunks", lambda: lambda: torch_chunks(x, centroids), flops, moved, agreement
        ),
        Contender("FAISS IndexFlatL2", lambda: faiss_search(x, centroids), flops, moved, agreement),
        Contender("flash-kmeans assignment", lambda: flash(x, centroids), flops, moved, agreement),
        Contender(
            "scikit-learn pairwise_distances_argmin", lambda: sklearn_argmin(x, centroids), flops, moved, agreement
        ),
        Contender(
            "llmfold_kernels.nearest_centre (Gram space)",
            lambda: lambda: nearest_centre(products, parts, offset, scale, labels),
            float(size.n) ** 2,
            float(products.nbytes),
        ),
    ]
    about = f"n = {size.n} rows of d = {size.d} features to k = {size.k} centroids, {options.dtype}."
    run("assign", "k-means assignment", about, contenders, options)


if __name__ == "__main__":
    main()
