"""Measure what folding costs at real sizes, on synthetic checkpoints of known shapes.

    python eval/scale.py whole --folder /data       LLaMA-7B, paper: memory, stages, against Gram and copy alone
    python eval/scale.py limit --folder /data       the same inside a memory cgroup of 4 GB
    python eval/scale.py wide --folder /data        two layers of Llama-3-70B
    python eval/scale.py self --folder /data        four layers of LLaMA-7B by self tokens, the model offloaded
    python eval/scale.py ranks --folder /data       one process against two, one thread each
    python eval/scale.py together --folder /data    the same by self tokens, on four layers of reduced width
    python eval/scale.py depth --folder /data       4, 8, 16 and 32 layers
    python eval/scale.py sweep --folder /data       one ratio against four in one command
    python eval/scale.py reference                  one MLP by a full PCA and scikit-learn's Ward, beside ours
    python eval/scale.py page                       write eval/results/scale.md from what was measured

Each part writes eval/results/scale/PART.json; checkpoints are made in ``--folder`` (kept with ``--keep``), folds are
removed. Run it on a machine that does nothing else: ratios of times are what is claimed.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthetic_checkpoint import config_of, write_checkpoint

from llmfold.runtime.storage import fsync_path

RESULTS = Path(__file__).parent / "results" / "scale"
Found = dict[str, Any]


class Bench:
    """Where checkpoints lie, and how commands are run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.folder = arguments, Path(arguments.folder)
        self.made: list[Path] = []

    def model(self, shape: str, layers: int | None = None, scale_down: int = 1) -> Path:
        """The checkpoint of a shape, made if it is not there yet."""
        path = self.folder / "-".join([shape, *([f"{layers}layers"] if layers else []), f"by{scale_down}"])
        if not path.exists():
            write_checkpoint(path, config_of(shape, layers=layers, scale_down=scale_down))
            self.made.append(path)
        return path

    def fold(self, model: Path, *options: str, processes: int = 1, limit: int | None = None) -> Found:
        """Fold in a process of its own; its report's seconds and peak, the wall time, and a digest of the weights."""
        out = self.folder / "scale-out"
        shutil.rmtree(out, ignore_errors=True)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "llmfold", "--model", str(model)]
        start = time.perf_counter()
        self.run([*command, "--output", str(out), "--quiet", "--fidelity-tokens", "0", *options], limit)
        found: Found = {"wall_seconds": time.perf_counter() - start, "options": shlex.join(options)}
        reports = sorted(out.rglob("report.json"))
        report = json.loads(reports[0].read_text(encoding="utf-8"))
        found.update({name: report[name] for name in ("seconds", "peak_memory_bytes", "verification")})
        found["bytes"], found["layers"] = report["plan"]["bytes"], len(report["layers"])
        found["without_check_seconds"] = sum(s for stage, s in report["seconds"].items() if stage != "check")
        found["sha256"] = _digest(out)
        shutil.rmtree(out)
        return found

    def run(self, command: list[str], limit: int | None = None) -> str:
        """Run a command, in a memory cgroup of ``limit`` bytes if one is given; fails loudly."""
        group = memory_group(limit) if limit else None
        join = f"echo $$ > {shlex.quote(str(group))}/cgroup.procs && exec " if group else "exec "
        try:
            done = subprocess.run(["sh", "-c", join + shlex.join(command)], capture_output=True, text=True, check=False)
        finally:
            if group:
                group.rmdir()
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def clean(self) -> None:
        """Remove the checkpoints made here."""
        for path in self.made if not self.arguments.keep else ():
            shutil.rmtree(path)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def memory_group(limit: int) -> Path:
    """A new memory cgroup of ``limit`` bytes (page cache counted) below the own one, version 1 or 2."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    paths = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    v1 = next((path for names, path in paths.items() if "memory" in names.split(",")), None)
    root, path = (Path("/sys/fs/cgroup/memory"), v1) if v1 is not None else (Path("/sys/fs/cgroup"), paths[""])
    group = root / path.lstrip("/") / f"llmfold-{os.getpid()}"
    try:
        group.mkdir()
        name = "memory.limit_in_bytes" if v1 is not None else "memory.max"
        (group / name).write_text(str(limit), encoding="ascii")
    except OSError as error:
        raise SystemExit(
            f"{group} cannot be made ({error.strerror}): run as root, or within a delegated cgroup"
        ) from None
    return group


def whole(bench: Bench) -> Found:
    """A whole model by the published method, beside the Gram products alone and a copy of the files alone."""
    arguments = bench.arguments
    model = bench.model("llama-7b", arguments.layers)
    found = {"fold": bench.fold(model, "--method", "paper", "--ratio", "0.2")}
    found["gram_seconds"] = float(bench.run([sys.executable, __file__, "--gram", str(model)]).split()[-1])
    start = time.perf_counter()
    shutil.copytree(model, copy := bench.folder / "scale-copy")
    for path in copy.iterdir():
        fsync_path(path)
    found["copy_seconds"] = time.perf_counter() - start
    shutil.rmtree(copy)
    floor = found["gram_seconds"] + found["copy_seconds"]
    return {**found, "times_gram_and_copy": found["fold"]["without_check_seconds"] / floor}


def gram_only(model: Path) -> float:
    """Seconds of the Gram products of all MLPs of a checkpoint, reading included."""
    from llmfold.checkpoint.locate import locate
    from llmfold.clustering import gram
    from llmfold.folding.neurons import neuron_rows
    from llmfold.models import tensor_name
    from llmfold.pipeline.opening import open_source
    from llmfold.runtime.memory import return_freed_blocks

    return_freed_blocks()
    checkpoint, shape = open_source(locate(str(model)))
    start = time.perf_counter()
    for index in range(len(shape.layers)):
        gram(neuron_rows({role: checkpoint.read(tensor_name(index, role)) for role in ("gate", "up", "down")}))
    return time.perf_counter() - start


def limit(bench: Bench) -> Found:
    """The same fold where the kernel allows it four gigabytes, files in the page cache included."""
    model = bench.model("llama-7b", bench.arguments.layers)
    found = bench.fold(model, "--method", "paper", "--ratio", "0.2", limit=4_000_000_000)
    return {"limit_bytes": 4_000_000_000, "fold": found}


def wide(bench: Bench) -> Found:
    """Two layers of the largest shape."""
    model = bench.model("llama-3-70b", 2)
    return {"fold": bench.fold(model, "--method", "paper", "--ratio", "0.2", "--ratio-of", "decoder")}


def by_self(bench: Bench) -> Found:
    """Four layers by self tokens, generation offloaded to disk; the streamed stages grow with the layers."""
    arguments = bench.arguments
    model, layers = bench.model("llama-7b", 4), 4
    options = ("--method", "self", "--ratio", "0.2", "--ratio-of", "decoder", "--max-memory", arguments.max_memory)
    found = bench.fold(model, *options, "--effort", arguments.effort)
    whole_model = {stage: seconds * 32 / layers for stage, seconds in found["seconds"].items()}
    return {"fold": found, "extrapolated_seconds": whole_model, "extrapolated_hours": sum(whole_model.values()) / 3600}


def ranks(bench: Bench) -> Found:
    """One process against two, one thread each, which deal out the layers."""
    return _one_and_two(bench, bench.model("llama-7b", bench.arguments.layers or 8), "--method", "paper")


def together(bench: Bench) -> Found:
    """One process against two, one thread each, which share sampling and forward passes and deal out the layers."""
    arguments = bench.arguments
    tokens = ("--num-samples", arguments.num_samples, "--sequence-length", arguments.sequence_length)
    model = bench.model("llama-7b", 4, arguments.scale_down)
    return _one_and_two(bench, model, "--method", "self", "--refine", arguments.refine, *tokens)


def _one_and_two(bench: Bench, model: Path, *method: str) -> Found:
    os.environ["OMP_NUM_THREADS"] = "1"
    options = (*method, "--ratio", "0.2", "--ratio-of", "decoder")
    one, two = bench.fold(model, *options), bench.fold(model, *options, processes=2)
    ratio = two["wall_seconds"] / one["wall_seconds"]
    return {"one": one, "two": two, "same_bytes": one["sha256"] == two["sha256"], "wall_ratio": ratio}


def depth(bench: Bench) -> Found:
    """Seconds against the number of layers."""
    folds = {}
    for layers in (4, 8, 16, 32):
        model = bench.model("llama-7b", layers, bench.arguments.scale_down)
        folds[layers] = bench.fold(model, "--method", "paper", "--ratio", "0.2", "--ratio-of", "decoder")
    per_layer = {n: (fold["without_check_seconds"]) / n for n, fold in folds.items()}
    return {"folds": folds, "seconds_per_layer": per_layer, "scale_down": bench.arguments.scale_down}


def sweep(bench: Bench) -> Found:
    """One ratio against four."""
    model = bench.model("llama-7b", bench.arguments.layers or 4)
    options = ("--method", "paper", "--ratio-of", "decoder", "--verify", "off")
    one = bench.fold(model, *options, "--ratio", "0.2")
    four = bench.fold(model, *options, "--ratio", "0.1,0.2,0.3,0.4")
    return {"one": one, "four": four, "wall_ratio": four["wall_seconds"] / one["wall_seconds"]}


def reference(bench: Bench) -> Found:
    """One MLP as the published code does it, full PCA and then scikit-learn's Ward in float32, beside ours."""
    import numpy as np
    import torch
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.decomposition import PCA

    from llmfold.clustering import cluster

    n, d = 11_008 // bench.arguments.scale_down, 3 * 4096 // bench.arguments.scale_down
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    rows[: n // 4] = rows[n // 4 : n // 4 * 2] + 0.1 * rows[: n // 4]
    keep = round(0.8 * n)
    start = time.perf_counter()
    reduced = PCA(svd_solver="full").fit_transform(np.asarray(rows))
    pca = time.perf_counter() - start
    AgglomerativeClustering(keep, linkage="ward").fit(reduced)
    theirs = time.perf_counter() - start
    start = time.perf_counter()
    cluster([rows.bfloat16()], keep, method="ward")
    ours = time.perf_counter() - start
    return {"n": n, "d": d, "pca_seconds": pca, "reference_seconds": theirs, "seconds": ours, "times": theirs / ours}


PARTS: dict[str, Callable[[Bench], Found]] = {
    "whole": whole,
    "limit": limit,
    "wide": wide,
    "self": by_self,
    "ranks": ranks,
    "together": together,
    "depth": depth,
    "sweep": sweep,
    "reference": reference,
}


def measure(part: str, bench: Bench) -> None:
    """Measure one part and store it with the machine, the versions and the load."""
    from llmfold.environment import machine_words, versions

    before = os.getloadavg()[0]
    try:
        found = PARTS[part](bench)
    finally:
        bench.clean()
    about = {
        "command": shlex.join(["python", "eval/scale.py", *_published(sys.argv[1:])]),
        "machine": f"{machine_words()} of {os.cpu_count()} CPUs",
        "versions": versions(),
        "load_before": before,
        **({"note": bench.arguments.note} if bench.arguments.note else {}),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{part}.json").write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def _published(words: list[str]) -> list[str]:
    """Arguments without the folder, which is this machine's own."""
    at = words.index("--folder") if "--folder" in words else len(words)
    return words[:at] + words[at + 2 :]


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _stages(fold: Found) -> str:
    total = sum(fold["seconds"].values())
    spent = sorted(fold["seconds"].items(), key=lambda item: -item[1])
    return ", ".join(f"{stage} {seconds:.0f} s ({seconds / total:.0%})" for stage, seconds in spent if seconds >= 0.5)


def _row(name: str, fold: Found) -> str:
    size, peak = _gigabytes(fold["bytes"]["before"]), _gigabytes(fold["peak_memory_bytes"])
    return f"| {name} | {fold['layers']} | {size} | {peak} | {fold['wall_seconds']:.0f} | {_stages(fold)} |"


def _against_one(p: Found) -> str:
    same = "the same bytes" if p["same_bytes"] else "OTHER BYTES"
    return f"{same}, {p['wall_ratio']:.2f} times the wall time of one"


def page() -> None:
    """Write scale.md, and the plot of depth, from the parts at hand."""
    parts = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    folds = {"whole": "LLaMA-7B, paper", "limit": "LLaMA-7B, paper, in a 4 GB cgroup", "wide": "Llama-3-70B, paper"}
    folds |= {"self": "LLaMA-7B, self", "self-before": "LLaMA-7B, self, by the code at 39ac081"}
    lines = [
        "# Folding at real sizes",
        "",
        "Synthetic bf16 checkpoints (`eval/synthetic_checkpoint.py`), ratio 0.2. ",
        "",
    ]
    lines += ["| model | layers | read, GB | peak anonymous, GB | wall, s | stages |", "|---|---:|---:|---:|---:|---|"]
    lines += [_row(title, parts[name]["fold"]) for name, title in folds.items() if name in parts]
    lines.append("")
    if "whole" in parts:
        p = parts["whole"]
        lines.append(
            f"- Without the check the 7B fold takes {p['times_gram_and_copy']:.2f} times the Gram products "
            f"({p['gram_seconds']:.0f} s) and a copy of the files ({p['copy_seconds']:.0f} s) together."
        )
    for name in ("self", "self-before"):
        if name in parts:
            p = parts[name]
            told = f"32 layers extrapolate to {p['extrapolated_hours']:.1f} hours on its machine"
            lines.append(f"- {folds[name]}, `{p['fold']['options']}`: {told}.")
    if "ranks" in parts:
        p = parts["ranks"]
        lines.append(f"- Two processes of one thread, layers dealt out: {_against_one(p)}.")
    if "together" in parts:
        p = parts["together"]
        lines.append(f"- `{p['one']['options']}` on a cut model, rows shared by two processes: {_against_one(p)}.")
        lines += [f"  One: {_stages(p['one'])}.", f"  Two: {_stages(p['two'])}."]
    if "sweep" in parts:
        p = parts["sweep"]
        lines.append(f"- `--ratio 0.1,0.2,0.3,0.4` takes {p['wall_ratio']:.2f} times the wall time of `--ratio 0.2`.")
    if "reference" in parts:
        p = parts["reference"]
        lines.append(
            f"- One MLP, n = {p['n']}, {p['d']} features: full PCA and scikit-learn's Ward take "
            f"{p['reference_seconds']:.1f} s ({p['pca_seconds']:.1f} s of it PCA), ours {p['seconds']:.2f} s: "
            f"{p['times']:.0f} times."
        )
    if "depth" in parts:
        lines += ["", "![Seconds against layers](scale/depth.svg)", ""]
        lines += ["| layers | seconds without the check | per layer | peak anonymous, GB |", "|---:|---:|---:|---:|"]
        for n, fold in parts["depth"]["folds"].items():
            spent, peak = fold["without_check_seconds"], _gigabytes(fold["peak_memory_bytes"])
            lines.append(f"| {n} | {spent:.1f} | {spent / int(n):.2f} | {peak} |")
        _plot(parts["depth"], RESULTS / "depth.svg")
    lines += ["", "Made by:", ""]
    for part in parts.values():
        said = "; ".join(filter(None, (f"load {part['load_before']:.1f} before the start", part.get("note"))))
        lines.append(f"- `{part['command']}`: {part['machine']}, {said}")
    lines += ["", ", ".join(f"{k} {v}" for k, v in next(iter(parts.values()))["versions"].items()), ""]
    (RESULTS.parent / "scale.md").write_text("\n".join(lines), encoding="utf-8")


def _plot(found: Found, path: Path) -> None:
    from llmfold.report.plot import Point, Series, line_chart, plain

    points = [Point(float(n), fold["without_check_seconds"]) for n, fold in found["folds"].items()]
    svg = line_chart(
        [Series("paper", points)],
        title="Seconds of a fold against the layers of the model",
        subtitle=f"widths of LLaMA-7B divided by {found['scale_down']}, without the reload check",
        x_label="layers",
        y_label="seconds",
        x_format=plain,
    )
    path.write_text(svg, encoding="utf-8")


def main() -> None:
    """Measure one part, or write the page."""
    if sys.argv[1:2] == ["--gram"]:
        print(gram_only(Path(sys.argv[2])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "page"])
    parser.add_argument("--folder", default="/tmp", help="where checkpoints and folds are made")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints that are made")
    parser.add_argument("--layers", type=int, help="cut the model of whole, limit, ranks and sweep")
    parser.add_argument("--scale-down", type=int, default=4, help="of depth and reference")
    parser.add_argument("--effort", default="quick", help="of self")
    parser.add_argument("--num-samples", default="64", help="of together")
    parser.add_argument("--sequence-length", default="256", help="of together")
    parser.add_argument("--refine", default="0", help="of together")
    parser.add_argument("--max-memory", default="2GiB", help="of self")
    parser.add_argument("--note", help="to stand beside the result, for example what else ran on the machine")
    arguments = parser.parse_args()
    if arguments.part == "page":
        page()
    else:
        measure(arguments.part, Bench(arguments))


if __name__ == "__main__":
    main()
