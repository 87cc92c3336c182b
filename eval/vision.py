r"""Fold convolutional networks by every method and repair at every rate, in one table with intervals, and one plot.

    python eval/vision.py run resnet20-cifar10.safetensors cifar10-jpeg-test2000.npz --seeds 0,1,2
    python eval/vision.py run resnet32-cifar10.safetensors cifar10-jpeg-test2000.npz --seeds 0,1,2
    python eval/vision.py drift resnet20-cifar10.safetensors cifar10-jpeg-test2000.npz
    python eval/vision.py page

``drift`` asks why Fold-AR collapses: see ``eval/vision_drift.py``. Networks are measured on images 500 to 1,999; what
is labelled as using data sees images 0 to 499, without their classes. Cells that stand in ``eval/results/vision`` are
not measured again. Images are inverted once a network and seed and kept in ``--work``.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import cifar_resnet
import numpy as np
import torch
from keeping import store
from torch import Tensor, nn
from vision_cells import FOLDER, OURS, Cell, accuracy
from vision_drift import drift
from vision_page import write_page

from llmfold.inversion import InversionOptions, inverted_inputs
from llmfold.modules.fold import Method, Repair, by_weights
from llmfold.modules.operations import multiplications
from llmfold.modules.plan import ModulePlan, planned
from llmfold.modules.projection import with_projections
from llmfold.modules.reconstruct import reconstructed
from llmfold.modules.statistics import reset_statistics

RATES = (0.25, 0.45, 0.65, 0.1, 0.35, 0.55, 0.75)
DATA = 500
"""Images before this one are for what uses data; the others measure."""
EXAMPLE = (2, 3, 32, 32)
RIVALS: tuple[tuple[Method, tuple[Repair, ...]], ...] = (
    ("paper", ("none", "variance")),
    ("ifm", ("none", "variance")),
    ("inn", ("none",)),
    ("magnitude-l1", ("none",)),
    ("magnitude-l2", ("none",)),
)


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


if __name__ == "__main__":
    main()
