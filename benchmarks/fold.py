"""A whole fold by the published method against a copy of the same files: reading, folding and writing on one machine.

    python benchmarks/fold.py --output results
    python benchmarks/fold.py --device cpu --size small --layers 4 --folder /data

The checkpoint is made in ``--folder`` (27 GB beside its 13.5 at the size llama-7b) and removed again. The reload check
is left out; the page cache is as each contender's last turn left it, for both alike.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import Contender, Row, arguments, medians, run, size_name, wanted

import llmfold
from llmfold.api import FoldReport
from llmfold.runtime.storage import fsync_path

SYNTHETIC = Path(__file__).parents[1] / "eval" / "synthetic_checkpoint.py"
SCALE_DOWN = {"llama-7b": 1, "small": 4, "tiny": 16}
CLUSTERING = ("gram", "distances", "bound", "cluster", "inertia")
COPY, FOLD = "copy of the files", "llmfold, method paper"


def copied(model: Path, target: Path) -> Callable[[], object]:
    """Copy every file and wait for the disk."""

    def call() -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(model, target)
        for path in target.iterdir():
            fsync_path(path)

    return call


def folded(model: Path, target: Path, device: str) -> Callable[[], object]:
    """Fold 20 % away; what is written is on the disk when it ends."""
    options = {"method": "paper", "ratio": 0.2, "verify": "off", "fidelity_tokens": 0, "device": device}

    def call() -> FoldReport:
        shutil.rmtree(target, ignore_errors=True)
        return llmfold.fold(model, output=target, quiet=True, **options)

    return call


def stages(result: object) -> str:
    """Seconds of the clustering of all layers, and of the other stages."""
    assert isinstance(result, FoldReport)
    clustering = sum(result.seconds.get(stage, 0.0) for stage in CLUSTERING)
    others = {stage: s for stage, s in result.seconds.items() if stage not in CLUSTERING and s > 0.001}
    words = [f"clustering of {len(result.layers)} layers {clustering:.3g} s"]
    return ", ".join([*words, *(f"{stage} {seconds:.3g} s" for stage, seconds in others.items())])


def over_copy(rows: list[Row]) -> list[str]:
    """The fold in copies of the files."""
    seconds = medians(rows)
    if COPY not in seconds or FOLD not in seconds:
        return []
    return [f"{FOLD} over {COPY}: {seconds[FOLD] / seconds[COPY]:.3f}.", ""]


def main() -> None:
    """Make the checkpoint, run both, write the table."""
    parser = arguments(__doc__)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made; the system's temporary folder")
    parser.add_argument("--layers", type=int, help="cut the model to its first N layers")
    parser.add_argument("--model", type=Path, help="a synthetic checkpoint of that size that stands already")
    options = parser.parse_args()
    if not any(wanted(name, options) for name in (COPY, FOLD)):
        return
    narrower = SCALE_DOWN[size_name(options)]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        model, copy, out = (Path(name) / part for part in ("model", "copy", "out"))
        words = [model, "--scale-down", narrower, "--seed", options.seed]
        words += ["--layers", options.layers] if options.layers else []
        if options.model:
            model = options.model
        else:
            subprocess.run([sys.executable, SYNTHETIC, "llama-7b", *map(str, words)], stdout=sys.stderr, check=True)
        nbytes = sum(path.stat().st_size for path in model.iterdir())
        contenders = [
            Contender(COPY, lambda: copied(model, copy)),
            Contender(FOLD, lambda: folded(model, out, options.device), judge=stages),
        ]
        about = (
            f"The shape of LLaMA-7B, widths over {narrower}, {nbytes / 1e9:.3g} GB of random bf16 weights with "
            "planted near-duplicates, 20 % folded away, without the reload check."
        )
        run("fold", "A whole fold against copying its files", about, contenders, options, over_copy)


if __name__ == "__main__":
    main()
