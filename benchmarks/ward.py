"""Ward's merges on the device against the host's, for one layer and for a batch.

python benchmarks/ward.py --layers 32 --output results
"""

from collections.abc import Callable

import torch
from harness import DTYPES, Contender, arguments, planted, run, size_of

from llmfold.clustering import Dendrogram, gram, squared_distances, ward
from llmfold_kernels import merge_greedily


def main() -> None:
    """Time all contenders; each copies the distances first, since merging destroys them."""
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=4, help="matrices in the batch")
    options = parser.parse_args()
    size, device, dtype = size_of(options), torch.device(options.device), DTYPES[options.dtype]
    x = planted(size, options.seed, dtype, device)
    distances = squared_distances([x], gram([x]))
    host = distances.cpu()
    expected = ward(host, size.k)
    merges = size.n - size.k
    ones = torch.ones(size.n, device=device)

    def batch() -> object:
        costs = (0.5 * distances).expand(options.layers, -1, -1).contiguous()
        return merge_greedily(costs, ones.expand(options.layers, -1).contiguous(), merges)

    def same(result: object) -> str:
        pairs = result.pairs if isinstance(result, Dendrogram) else result[0]  # type: ignore[index]
        return f"{float((pairs == expected.pairs).all(-1).double().mean()):.1%} of merges as on the host"

    def scikit() -> Callable[[], object]:
        from sklearn.cluster import AgglomerativeClustering

        points = x.float().cpu().numpy()
        return lambda: AgglomerativeClustering(size.k, linkage="ward").fit_predict(points)

    moved = float(distances.nbytes)
    contenders = [
        Contender("llmfold on the host", lambda: lambda: ward(distances.cpu(), size.k), nbytes=moved, judge=same),
        Contender(
            f"scikit-learn Ward from the rows (d = {size.d})",
            scikit,
        ),
    ]
    if device.type == "cuda":
        contenders += [
            Contender(
                "llmfold_kernels.merge_greedily", lambda: lambda: ward(distances, size.k), nbytes=moved, judge=same
            ),
            Contender(f"the same, {options.layers} layers in one launch", lambda: batch, nbytes=moved * options.layers),
        ]
    about = (
        f"{merges} merges of n = {size.n} rows, float32 distances. Bytes count one pass over the matrix. On a CPU "
        "there is no kernel to time: its twin is a definition, not a way to cluster."
    )
    run("ward", "Ward's merges", about, contenders, options)


if __name__ == "__main__":
    main()
