"""Centroid update by label, of rows and of Gram columns, against torch's atomic and one-hot sums.

python benchmarks/centroids.py --output results
"""

from collections.abc import Callable

import torch
from harness import DTYPES, Contender, arguments, planted, run, size_of
from torch import Tensor

from llmfold.clustering import gram
from llmfold_kernels import segment_sums, segments


def index_add(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """Atomic additions on CUDA: the order, and so the last bits, differ from run to run."""
    return torch.zeros(k, x.shape[1], device=x.device).index_add_(0, labels, x.float())


def flash(x: Tensor, labels: Tensor, k: int) -> Callable[[], object]:
    """flash-kmeans' sorted update."""
    from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

    if not x.is_cuda:
        raise ImportError("flash-kmeans' kernel needs CUDA")
    old = torch.zeros(1, k, x.shape[1], dtype=x.dtype, device=x.device)
    return lambda: triton_centroid_update_sorted_euclid(x[None], labels[None], old)


def main() -> None:
    """Time all contenders."""
    options = arguments(__doc__).parse_args()
    size, device, dtype = size_of(options), torch.device(options.device), DTYPES[options.dtype]
    x = planted(size, options.seed, dtype, device)
    generator = torch.Generator().manual_seed(options.seed)
    labels = (torch.rand(size.n, generator=generator) ** 2 * size.k).long().to(device)
    parts, products = segments(labels, size.k), gram([x])
    moved = x.nbytes + 4.0 * size.k * size.d
    in_gram = products.nbytes + 4.0 * size.k * size.n
    contenders = [
        Contender("llmfold_kernels.segment_sums", lambda: lambda: segment_sums(x, parts), nbytes=moved),
        Contender(
            "the same, labels sorted too",
            lambda: lambda: segment_sums(x, segments(labels, size.k)),
            nbytes=moved,
        ),
        Contender("torch index_add_", lambda: lambda: index_add(x, labels, size.k), nbytes=moved),
        Contender("flash-kmeans sorted update", lambda: flash(x, labels, size.k), nbytes=moved),
        Contender(
            "llmfold_kernels.segment_sums of the Gram", lambda: lambda: segment_sums(products, parts), nbytes=in_gram
        ),
        Contender("torch index_add_ of the Gram", lambda: lambda: index_add(products, labels, size.k), nbytes=in_gram),
    ]
    about = f"n = {size.n} rows of d = {size.d} features in k = {size.k} clusters of skewed sizes, {options.dtype}."
    run("centroids", "Centroid update", about, contenders, options)


if __name__ == "__main__":
    main()
