"""Gram product of three blocks (gate, up, down transposed) against torch's own product.

python benchmarks/gram.py --output results
"""

import torch
from harness import DTYPES, Contender, arguments, planted, run, size_of
from torch import Tensor

from llmfold.clustering import gram as layer_gram
from llmfold.clustering import squared_distances
from llmfold_kernels import gram
from llmfold_kernels.gram import naive


def full_product(x: Tensor) -> Tensor:
    """N x n in float32: cuBLAS's own float32 output on CUDA, rounded to the inputs' dtype where torch has no other."""
    return torch.mm(x, x.T, out_dtype=torch.float32) if x.is_cuda and x.dtype != torch.float32 else x @ x.T


def with_epilogue(x: Tensor) -> Tensor:
    """Full product and a separate pass for distances."""
    return naive.finish(full_product(x).float(), x.float().square().sum(1), "distances", None)


def main() -> None:
    """Time all contenders."""
    options = arguments(__doc__).parse_args()
    size, device, dtype = size_of(options), torch.device(options.device), DTYPES[options.dtype]
    x = planted(size, options.seed, dtype, device)
    third = size.d // 3
    blocks = [x[:, :third].contiguous(), x[:, third : 2 * third].contiguous(), x[:, 2 * third :].T.contiguous().T]
    sample = torch.arange(0, size.n, max(1, size.n // 64), device=device)
    exact = x[sample].double() @ x[sample].double().T

    def error(result: object) -> str:
        found = (result[0] if isinstance(result, tuple) else result)[sample[:, None], sample]  # type: ignore[index]
        return f"error {float((found.double() - exact).abs().max() / exact.diagonal().max()):.1e} of S_ii"

    triangle = float(size.n) * size.n * size.d
    moved = x.nbytes + 4.0 * size.n**2
    contenders = [
        Contender("llmfold_kernels.gram, products", lambda: lambda: gram(blocks), triangle, moved, error),
        Contender(
            "llmfold_kernels.gram, distances", lambda: lambda: gram(blocks, epilogue="distances"), triangle, moved
        ),
        Contender("llmfold.clustering.gram", lambda: lambda: layer_gram(blocks), triangle, moved, error),
        Contender(
            "llmfold Gram, then exact distances",
            lambda: lambda: squared_distances(blocks, layer_gram(blocks)),
            triangle,
            moved,
        ),
        Contender(
            "torch full product of the concatenation", lambda: lambda: full_product(x), 2 * triangle, moved, error
        ),
        Contender("torch full product, separate distances", lambda: lambda: with_epilogue(x), 2 * triangle, moved),
    ]
    about = (
        f"n = {size.n} rows of d = {size.d} features, {options.dtype}. A triangle needs n²d operations, which is what "
        "counts for llmfold; torch computes both halves, 2n²d."
    )
    run("gram", "Gram product", about, contenders, options)


if __name__ == "__main__":
    main()
