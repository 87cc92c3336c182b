r"""Fold convolutional networks by every method and repair at every rate, in one table with intervals, and one plot.

    python eval/vision.py run resnet20-cifar10.safetensors cifar10-jpeg-test2000.npz --seeds 0,1,2
    python eval/vision.py run resnet32-cifar10.safetensors cifar10-jpeg-test2000.npz --seeds 0,1,2
    python eval/vision.py drift resnet20-cifar10.safetensors cifar10-jpeg-test2000.npz
    python eval/vision.py page

``drift`` asks why Fold-AR collapses: what is left of the variance that BatchNorms give, stage by stage. Networks are
measured on images 500 to 1,999; what is labelled as using data sees images 0 to 499, without their classes. Cells that
stand in ``eval/results/vision`` are not measured again. Images are inverted once a network and seed and kept in
``--work``.
"""

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar_resnet
import numpy as np
import torch
from keeping import place, store
from numpy.typing import NDArray
from torch import Tensor, nn

from llmfold.inversion import InversionOptions, inverted_inputs
from llmfold.modules.activations import watch_layers
from llmfold.modules.fold import Method, Repair, by_weights
from llmfold.modules.operations import multiplications
from llmfold.modules.plan import ModulePlan, planned
from llmfold.modules.projection import with_projections
from llmfold.modules.reconstruct import reconstructed
from llmfold.modules.statistics import reset_statistics
from llmfold.report.plot import Point, Series, line_chart

RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "vision"
RATES = (0.25, 0.45, 0.65, 0.1, 0.35, 0.55, 0.75)
DATA = 500
"""Images before this one are for what uses data; the others measure."""
EXAMPLE = (2, 3, 32, 32)
OURS = "self"
RIVALS: tuple[tuple[Method, tuple[Repair, ...]], ...] = (
    ("paper", ("none", "variance")),
    ("ifm", ("none", "variance")),
    ("inn", ("none",)),
    ("magnitude-l1", ("none",)),
    ("magnitude-l2", ("none",)),
)
NAMES = {
    **{"none": "", "variance": " + AR", "inverted": " + DIR", "data": " + REPAIR, 500 real images"},
    **{
        OURS: "self (ours)",
        "paper": "fold",
        "ifm": "IFM",
        "inn": "INN",
        "magnitude-l1": "magnitude L1",
        "magnitude-l2": "magnitude L2",
    },
}
RESAMPLES = 2000


@dataclass(frozen=True)
class Cell:
    """One network to measure."""

    method: str
    repair: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """In the file of results."""
        return f"{self.method}|{self.repair}|{self.rate:g}|{self.seed}"

    @classmethod
    def parsed(cls, key: str) -> "Cell":
        """From a key."""
        method, repair, rate, seed = key.split("|")
        return cls(method, repair, float(rate), int(seed))

    @property
    def uses_data(self) -> bool:
        """Whether it has seen images of the data set."""
        return self.repair == "data"

    @property
    def name(self) -> str:
        """In tables."""
        if self.method == OURS:
            return f"**{NAMES[OURS]}**" if self.repair == "none" else "self on 500 real images"
        return NAMES[self.method] + NAMES[self.repair]


class Bench:
    """A network with images, and the cells measured so far."""

    def __init__(self, network: Path, images: Path, work: Path) -> None:
        """Read both files and what stands."""
        self.name, self.work = network.stem.removesuffix("-cifar10"), work
        self.network = cifar_resnet.load(network)
        self.example = (torch.zeros(EXAMPLE),)
        self.dense = with_projections(self.network, self.example)
        x, y = cifar_resnet.images(images)
        self.real, self.x, self.y = x[:DATA], x[DATA:], y[DATA:]
        self.path = FOLDER / f"{self.name}.json"
        self.found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {"cells": {}}
        if "dense" not in self.found:
            self.found["dense"] = self.measured(self.dense)
            self.found["dense"]["parameters"] = sum(p.numel() for p in self.network.parameters())

    def images(self, seed: int) -> Tensor:
        """Inverted images of a seed."""
        path = self.work / f"{self.name}-{seed}.pt"
        if not path.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            torch.save(inverted_inputs(self.network, EXAMPLE[1:], InversionOptions(), seed), path)
        stored: Tensor = torch.load(path, weights_only=True)
        return stored

    def measured(self, network: nn.Module) -> dict[str, Any]:
        """Which images a network gets right, its parameters and multiplications for an image."""
        with torch.no_grad():
            right = torch.cat(
                [network(x).argmax(1) == y for x, y in zip(self.x.split(100), self.y.split(100), strict=True)]
            )
        return {
            "correct": np.packbits(right.numpy()).tobytes().hex(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "multiplications": multiplications(network, self.example[0][:1]),
        }

    def add(self, cell: Cell, network: nn.Module) -> None:
        """Measure a network and keep that."""
        found = self.measured(network)
        self.found["cells"][cell.key] = found
        store(self.path, {name: self.found[name] for name in ("dense", "cells")})
        print(f"{self.name} {cell.key}: {accuracy(found):.3f}", flush=True)

    def missing(self, cell: Cell) -> bool:
        """Whether a cell has not been measured."""
        return cell.key not in self.found["cells"]

    def plan(self, rate: float) -> ModulePlan:
        """Widths at a rate of channels."""
        return planned(self.network, self.dense, self.example, rate, "channels", None)

    def run(self, rate: float, seed: int) -> None:
        """All cells of a rate and seed; what no seed moves is measured under seed 0."""
        plan = self.plan(rate)
        self._ours(plan, Cell(OURS, "none", rate, seed), None)
        if seed == 0:
            self._ours(plan, Cell(OURS, "data", rate, 0), self.real)
        for method, repairs in RIVALS:
            wanted = [Cell(method, repair, rate, 0) for repair in (*repairs, "data") if seed == 0]
            wanted = [cell for cell in (*wanted, Cell(method, "inverted", rate, seed)) if self.missing(cell)]
            if not wanted:
                continue
            plain = by_weights(self.dense, plan, method, "none").eval()
            for cell in wanted:
                network = plain
                if cell.repair == "variance":
                    network = by_weights(self.dense, plan, method, "variance").eval()
                elif cell.repair in ("data", "inverted"):
                    network = copy.deepcopy(plain)
                    reset_statistics(network, self.real if cell.uses_data else self.images(seed))
                self.add(cell, network)

    def _ours(self, plan: ModulePlan, cell: Cell, inputs: Tensor | None) -> None:
        if self.missing(cell):
            seen = self.images(cell.seed) if inputs is None else inputs
            self.add(cell, reconstructed(self.dense, plan.couplings.found, plan.widths, seen).eval())


def correct(found: Mapping[str, Any]) -> NDArray[np.float64]:
    """(images,) ones where a network is right."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(found["correct"]), np.uint8)).astype(np.float64)[:1500]


def accuracy(found: Mapping[str, Any]) -> float:
    """Share of images."""
    return float(correct(found).mean())


def interval(one: NDArray[np.float64], other: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % of the bootstrap's differences of mean accuracy, over the same images drawn for both."""
    difference = one - other
    drawn = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


DRIFT = FOLDER / "drift.json"
DRIFT_RATES, DRIFT_IMAGES = (0.1, 0.25, 0.45), 100


def drift(bench: Bench) -> None:
    """Variance of what BatchNorms give, over that of the dense network on the same images, by stage."""
    paths = [path for path, part in bench.dense.named_modules() if isinstance(part, nn.BatchNorm2d)]
    seen = bench.x[:DRIFT_IMAGES]
    dense, found = _given(bench.dense, paths, seen), {}
    for rate in DRIFT_RATES:
        plan = bench.plan(rate)
        ours = reconstructed(bench.dense, plan.couplings.found, plan.widths, bench.images(0)).eval()
        networks = {"fold": by_weights(bench.dense, plan, "paper", "none").eval(), NAMES[OURS]: ours}
        networks["fold + AR"] = by_weights(bench.dense, plan, "paper", "variance").eval()
        for name, network in networks.items():
            given = _given(network, paths, seen)
            for stage in STAGES:
                ratios = [given[path] / dense[path] for path in paths if path.startswith(stage)]
                found[f"{name}|{rate:g}|{stage}"] = float(np.exp(np.mean(np.log(ratios))))
    store(DRIFT, {"network": bench.name, "images": DRIFT_IMAGES, "ratios": found})


STAGES = ("layer1", "layer2", "layer3")


def _given(network: nn.Module, paths: list[str], x: Tensor) -> dict[str, float]:
    """Mean variance of the channels that each BatchNorm gives."""
    found: dict[str, float] = {}
    watch_layers(
        network, x, paths, lambda path, _, y: found.update({path: float(y.var((0, 2, 3)).mean())}), batch=len(x)
    )
    return found


def drift_lines() -> Iterator[str]:
    """The page's part on what is left of variances."""
    if not DRIFT.exists():
        return
    stored = json.loads(DRIFT.read_text())
    yield "## Why Fold-AR collapses\n"
    yield (
        f"Variance of what BatchNorms give in {stored['network'].replace('resnet', 'ResNet')}, over that of the dense "
        f"network on the same {stored['images']} images; geometric means by stage, one where nothing is lost.\n"
    )
    yield "| network | channels removed | first stage | second | third |"
    yield "|---|---:|---:|---:|---:|"
    for name, rate in dict.fromkeys(tuple(key.split("|")[:2]) for key in stored["ratios"]):
        cells = " | ".join(f"{stored['ratios'][f'{name}|{rate}|{stage}']:.2f}" for stage in STAGES)
        yield f"| {name} | {100 * float(rate):g} % | {cells} |"
    yield (
        "\nAR restores in each layer what averaging takes from it, by the cosine of weights, as if what comes in were "
        "whole. What the layers before have lost is not seen, so what is missing multiplies with depth. Least squares "
        "on what the narrower layers really give, with statistics matched on the way, leaves nothing to multiply; it "
        "also brings back what no statistics can, as the distance from REPAIR shows.\n"
    )
    yield f"Measured on {place(stored)}.\n"


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    runs = parts.add_parser("run", help="measure what does not stand yet")
    drifts = parts.add_parser("drift", help="measure what is left of variances")
    for part in (runs, drifts):
        part.add_argument("network", type=Path)
        part.add_argument("images", type=Path)
        part.add_argument("--work", type=Path, default=Path("build/vision"), help="where inverted images are kept")
    runs.add_argument("--seeds", default="0,1,2")
    runs.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES))
    parts.add_parser("page", help="write the table and the plot")
    arguments = parser.parse_args()
    if arguments.part == "page":
        write_page()
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bench = Bench(arguments.network, arguments.images, arguments.work)
    if arguments.part == "drift":
        drift(bench)
        return
    for seed in map(int, arguments.seeds.split(",")):
        for rate in map(float, arguments.rates.split(",")):
            bench.run(rate, seed)


class Table:
    """Cells of a network, those of several seeds together."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        """From a file of results."""
        self.found, self.rows = found, dict[tuple[str, float], list[Mapping[str, Any]]]()
        self.data: set[str] = set()
        for key, cell in found["cells"].items():
            parsed = Cell.parsed(key)
            self.rows.setdefault((parsed.name, parsed.rate), []).append(cell)
            if parsed.uses_data:
                self.data.add(parsed.name)
        self.rates = sorted({rate for _, rate in self.rows})
        self.names = list(dict.fromkeys(name for name, _ in self.rows))

    def right(self, name: str, rate: float) -> NDArray[np.float64]:
        """(images,) mean over seeds of being right."""
        return np.mean([correct(cell) for cell in self.rows[name, rate]], 0)

    def text(self, name: str, rate: float) -> str:
        """Accuracy in percent, with the spread of seeds."""
        cells = self.rows.get((name, rate))
        if cells is None:
            return ""
        values = [100 * accuracy(cell) for cell in cells]
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        return f"{np.mean(values):.1f}{spread}"

    def best_rival(self, rate: float) -> str | None:
        """Of those that use no data and are not ours; None where not all have been measured."""
        ours = Cell(OURS, "none", rate, 0).name
        rivals = [name for name in self.names if name != ours and name not in self.data]
        if any((name, rate) not in self.rows for name in rivals):
            return None
        return max(rivals, key=lambda name: float(self.right(name, rate).mean()), default=None)


def lines(title: str, table: Table) -> Iterator[str]:
    """The page's part on one network."""
    ours, dense = Cell(OURS, "none", 0, 0).name, table.found["dense"]
    yield f"## {title}\n"
    sizes = f"{dense['parameters']:,} parameters, {dense['multiplications']:,} multiplications an image"
    yield f"Dense: {100 * accuracy(dense):.1f} %, {sizes}.\n"
    yield "| accuracy, % |" + "".join(f" {100 * rate:g} % |" for rate in table.rates)
    yield "|---|" + "---:|" * len(table.rates)
    for name in sorted(table.names, key=lambda n: (n in table.data, n != ours)):
        yield f"| {name} |" + "".join(f" {table.text(name, rate)} |" for rate in table.rates)
    for what in ("parameters", "multiplications"):
        shares = [table.rows[ours, r][0][what] / dense[what] if (ours, r) in table.rows else 0 for r in table.rates]
        yield f"| {what} left, % |" + "".join(f" {100 * share:.0f} |" for share in shares)
    yield ""
    yield "Difference of ours, in points, with its 95 % interval:\n"
    yield "| channels removed | best other without data | ours − it | | REPAIR of the fold | ours − it | |"
    yield "|---:|---|---:|---|---|---:|---|"
    repair = Cell("paper", "data", 0, 0).name
    for rate in table.rates:
        best = table.best_rival(rate)
        if (ours, rate) not in table.rows or best is None:
            continue
        cells = [f"{100 * rate:g} %"]
        for other in (best, repair):
            if (other, rate) not in table.rows:
                cells += [other, "", ""]
                continue
            one, two = table.right(ours, rate), table.right(other, rate)
            low, high = interval(one, two)
            word = "above" if low > 0 else "below" if high < 0 else "no difference shown"
            cells += [other, f"{100 * (one - two).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", word]
        yield "| " + " | ".join(cells) + " |"
    yield ""


PLOTTED = (("self", "none"), ("paper", "data"), ("paper", "inverted"), ("paper", "variance"), ("ifm", "inverted"))


def plot(title: str, table: Table) -> str:
    """Accuracy against channels removed."""
    series = []
    for method, repair in (*PLOTTED, ("magnitude-l2", "inverted"), ("self", "data")):
        name = Cell(method, repair, 0, 0).name
        points = [Point(r, 100 * float(table.right(name, r).mean())) for r in table.rates if (name, r) in table.rows]
        if points:
            series.append(Series(name.replace("*", ""), points))
    level = ("dense", 100 * accuracy(table.found["dense"]))
    return line_chart(
        series, title=f"{title} on CIFAR-10", x_label="channels removed", y_label="accuracy, %", level=level
    )


def write_page() -> None:
    """Table and plots of all networks."""
    files = sorted(FOLDER.glob("resnet*.json"))
    if not files:
        sys.exit("nothing has been measured: see --help")
    page = [(Path(__file__).parent / "vision_head.md").read_text(encoding="utf-8")]
    for path in files:
        found = json.loads(path.read_text())
        table, title = Table(found), path.stem.replace("resnet", "ResNet")
        (FOLDER / f"{path.stem}.svg").write_text(plot(title, table), encoding="utf-8")
        page += lines(title, table)
        page.append(f"![Accuracy of {title} against channels removed, by method.](vision/{path.stem}.svg)\n")
        page.append(f"Measured on {place(found)}.\n")
    text = "\n".join([*page, *drift_lines()])
    (RESULTS / "vision.md").write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
