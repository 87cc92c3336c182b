"""Normal equations of a down projection: fused activations against activations stored first.

python kernels/benchmarks/swiglu_gram.py --output results
"""

import torch
import torch.nn.functional as F
from harness import DTYPES, Contender, arguments, run, size_of

from llmfold_kernels import gram, swiglu_gram


def main() -> None:
    """Time all contenders."""
    options = arguments(__doc__).parse_args()
    size, device, dtype = size_of(options), torch.device(options.device), DTYPES[options.dtype]
    generator = torch.Generator().manual_seed(options.seed)
    t, n, m = size.tokens, size.n, size.d // 3
    gate, up, y = (torch.randn(t, width, generator=generator).to(dtype).to(device) for width in (n, n, m))

    def stored() -> object:
        a = F.silu(gate) * up
        return a.T @ a, a.T @ y

    def stored_then_gram() -> object:
        a = F.silu(gate) * up
        return gram([a.T]).matrix, a.T @ y

    flops = 1.0 * t * n * n + 2.0 * t * n * m
    moved = float(gate.nbytes + up.nbytes + y.nbytes + 4 * n * (n + m))
    contenders = [
        Contender("llmfold_kernels.swiglu_gram", lambda: lambda: swiglu_gram(gate, up, y), flops, moved),
        Contender("torch activations, torch products", lambda: stored, flops + t * n * n, moved),
        Contender("torch activations, llmfold_kernels.gram", lambda: stored_then_gram, flops, moved),
    ]
    about = f"{t} tokens, n = {n} neurons, outputs of m = {m}, {options.dtype}."
    run("swiglu_gram", "SwiGLU normal equations", about, contenders, options)


if __name__ == "__main__":
    main()
