"""The page of vision: tables with intervals and plots, of what ``eval/vision.py`` has measured."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keeping import place
from numpy.typing import NDArray
from vision_cells import DRIFT, FOLDER, OURS, RESULTS, STAGES, Cell, accuracy, correct, interval

from llmfold.report.plot import Point, Series, line_chart


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
