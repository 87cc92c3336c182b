"""Backward elimination on the inverse Gram: the kernel against llmfold's blocked torch version.

python benchmarks/elimination.py --output results
"""

import torch
from harness import Contender, arguments, run, size_of

from llmfold.selection.elimination import downdate_in_blocks
from llmfold_kernels import eliminate


def main() -> None:
    """Time all contenders; each copies both matrices first, since elimination destroys them."""
    options = arguments(__doc__).parse_args()
    size, device = size_of(options), torch.device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    n, steps = size.n, size.n - size.k
    a = torch.randn(n + n // 4, n, generator=generator).to(device).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(a.T @ a / len(a) + 0.1 * torch.eye(n, device=device)))
    refit = inverse @ torch.randn(n, 64, generator=generator).to(device).double()
    products = refit @ refit.T
    expected = downdate_in_blocks(inverse.clone(), products.clone(), min(steps, 64))[0]

    def same(result: object) -> str:
        removed = result[0]  # type: ignore[index]
        return f"first {len(expected)} units as blocked: {bool((removed[: len(expected)] == expected).all())}"

    flops = 3.0 * 2 * n * n * steps
    contenders = [
        Contender(
            "blocked, torch (host decides each step)",
            lambda: lambda: downdate_in_blocks(inverse.clone(), products.clone(), steps),
            flops,
            judge=same,
        ),
    ]
    if device.type == "cuda":
        contenders.append(
            Contender(
                "llmfold_kernels.eliminate",
                lambda: lambda: eliminate(inverse.clone(), products.clone(), steps),
                flops,
                judge=same,
            )
        )
    about = f"{steps} of n = {n} units removed, float64; three rank-one updates of n x n for each."
    options.dtype = "float32"
    run("elimination", "Backward elimination", about, contenders, options)


if __name__ == "__main__":
    main()
