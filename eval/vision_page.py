"""The page of vision: tables with intervals and plots, of what ``eval/vision.py`` has measured."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keeping import place
from numpy.typing import NDArray
from vision_cells import FOLDER, OURS, RESULTS, STAGES, Cell, accuracy, correct, interval

from llmfold.report.plot import Point, Series, line_chart


class Table:
    """Cells of a network, those of several seeds together."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        """From a file of results."""
        self.found, self.rows = found, dict[tuple[str, float], list[Mapping[str, Any]]]()
        self.data: set[str] = set()
        measured = {Cell.parsed(key): cell for key, cell in found["cells"].items()}
        for parsed in sorted(measured, key=lambda cell: cell.seed):
            cell = measured[parsed]
            self.rows.setdefault((parsed.name, parsed.rate), []).append(cell)
            if parsed.uses_data:
                self.data.add(parsed.name)
        self.rates = sorted({rate for _, rate in self.rows})
        self.names = list(dict.fromkeys(name for name, _ in self.rows))
        ours = Cell(OURS, "none", 0, 0).name
        self.rivals = [name for name in self.names if name != ours and name not in self.data]

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

    def above(self, rate: float) -> list[bool]:
        """By seed, whether ours is above all others of that seed that use no data; some have one seed for all."""
        others = [self.rows[name, rate] for name in self.rivals]
        return [
            all(interval(correct(cell), correct(of[min(number, len(of) - 1)]))[0] > 0 for of in others)
            for number, cell in enumerate(self.rows[Cell(OURS, "none", rate, 0).name, rate])
        ]

    def best_rival(self, rate: float) -> str | None:
        """Of the rivals, the most accurate; None where not all have been measured."""
        if any((name, rate) not in self.rows for name in self.rivals):
            return None
        return max(self.rivals, key=lambda name: float(self.right(name, rate).mean()), default=None)


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
    yield "| channels removed | best other without data | ours − it | | REPAIR of fold | ours − it | | seeds above |"
    yield "|---:|---|---:|---|---|---:|---|---:|"
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
        seeds = table.above(rate)
        cells.append(f"{sum(seeds)} of {len(seeds)}")
        yield "| " + " | ".join(cells) + " |"
    yield ""


ORDER = (
    (("paper", "none"), ("ifm", "none")),
    (("paper", "none"), ("magnitude-l1", "none")),
    (("paper", "none"), ("magnitude-l2", "none")),
    (("paper", "inverted"), ("ifm", "inverted")),
    (("paper", "inverted"), ("inn", "inverted")),
    (("paper", "inverted"), ("magnitude-l1", "inverted")),
    (("paper", "inverted"), ("magnitude-l2", "inverted")),
    (("paper", "inverted"), ("paper", "variance")),
    (("paper", "variance"), ("paper", "none")),
)
"""Published: the first is above the second."""
CHANCE = 0.1


def order_lines(table: Table) -> Iterator[str]:
    """Whether the published order is found, rate by rate, and how often where networks still work."""
    half = accuracy(table.found["dense"]) / 2
    counts = {works: dict.fromkeys(("above", "below", "neither", "chance"), 0) for works in (True, False)}
    yield (
        "Published order, difference in points with its 95 % interval, bold where zero is not in it; “chance” where "
        "neither network is shown to be above 10 %:\n"
    )
    yield "| |" + "".join(f" {100 * rate:g} % |" for rate in table.rates)
    yield "|---|" + "---:|" * len(table.rates)
    for pair in ORDER:
        one, other = (Cell(method, repair, 0, 0).name for method, repair in pair)
        cells = []
        for rate in table.rates:
            if (one, rate) not in table.rows or (other, rate) not in table.rows:
                cells.append("")
                continue
            right = table.right(one, rate), table.right(other, rate)
            word, text = _ordered(*right)
            counts[max(r.mean() for r in right) >= half][word] += 1
            cells.append(text)
        yield f"| {one} − {other} | " + " | ".join(cells) + " |"
    parts = []
    for works, where in ((True, "the better of the two keeps half of the dense accuracy"), (False, "neither does")):
        found = counts[works]
        words = f"{found['above']} of {sum(found.values())} show that order, {found['below']} the reverse"
        parts.append(f"Where {where}, {words}" + (f", {found['chance']} are at chance." if found["chance"] else "."))
    yield "\n" + " ".join(parts) + "\n"


def _ordered(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[str, str]:
    """What a comparison shows, and its cell."""
    chance = np.full_like(one, CHANCE)
    if interval(one, chance)[0] <= 0 and interval(other, chance)[0] <= 0:
        return "chance", "chance"
    low, high = interval(one, other)
    word = "above" if low > 0 else "below" if high < 0 else "neither"
    mark = "" if word == "neither" else "**"
    return word, f"{mark}{100 * (one - other).mean():+.1f}{mark} [{100 * low:+.1f}, {100 * high:+.1f}]"


PLOTTED = (
    *((OURS, "none"), ("paper", "data"), ("paper", "inverted"), ("paper", "variance"), ("ifm", "inverted")),
    *(("magnitude-l2", "inverted"), (OURS, "data")),
)
AXES = {"channels": "channels removed", "parameters": "parameters removed", "multiplications": "FLOPs removed"}
"""What accuracy is drawn against; a multiplication and its addition are two FLOPs."""


def plot(title: str, table: Table, axis: str) -> str:
    """Accuracy against what is removed: of chosen methods against channels, of all against the rest."""
    names = [Cell(method, repair, 0, 0).name for method, repair in PLOTTED] if axis == "channels" else table.names
    series, dense = [], table.found["dense"]
    for name in names:
        points = []
        for rate in table.rates:
            if cells := table.rows.get((name, rate)):
                gone = rate if axis == "channels" else 1 - cells[0][axis] / dense[axis]
                values = [100 * accuracy(cell) for cell in cells]
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                points.append(Point(gone, float(np.mean(values)), spread))
        if points:
            series.append(Series(name.replace("*", ""), points))
    level = ("dense", 100 * accuracy(dense))
    return line_chart(series, title=f"{title} on CIFAR-10", x_label=AXES[axis], y_label="accuracy, %", level=level)


def drift_lines(path: Path) -> Iterator[str]:
    """The page's part on what is left of variances in one network."""
    stored = json.loads(path.read_text())
    title, rows, alone = stored["network"].replace("resnet", "ResNet"), stored["rows"], stored["alone"]
    yield f"### {title}\n"
    yield "| network | channels removed | accuracy, % | alone | first stage | second | third |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for key, row in rows.items():
        name, rate = key.split("|")
        by_itself = f"{alone[key]:.2f}" if key in alone else ""
        left = " | ".join(f"{row['left'][stage]:.2f}" for stage in STAGES)
        yield f"| {name} | {100 * float(rate):g} % | {100 * row['accuracy']:.1f} | {by_itself} | {left} |"

    def at(name: str) -> str:
        return f"{100 * rows[f'{name}|0.25']['accuracy']:.1f} %"

    third = rows["fold + AR|0.25"]["left"][STAGES[-1]]
    yield (
        f"\nAt 25 %, AR leaves {alone['fold + AR|0.25']:.2f} of the variance where one coupling is folded alone, but "
        f"{third:.2f} in the third stage when all are: its factor, known from the weights of a layer, takes what "
        "comes in as whole, so what layers before have lost multiplies with depth. Variance is not all: measured "
        f"variances take the fold from {at('fold')} to {at('fold, variances measured')}, measured means besides to "
        f"{at('fold, variances and means measured')}, and of means weights say nothing. AR also clusters by rows "
        "divided by running deviations: on the clusters of the plain fold it gives "
        f"{at('fold + AR on clusters of the fold')} in place of {at('fold + AR')}.\n"
    )
    yield f"Measured on {place(stored)}.\n"


def tracing_lines(stored: Mapping[str, Any]) -> Iterator[str]:
    """The page's part on networks of real size."""
    yield (
        f"Random weights, images of {stored['pixels']} × {stored['pixels']}; medians of {stored['repeats']} turns in a "
        "run, in seconds. *Trace*: all couplings. *Plan*: and each tried in float64. *Fold*: from the module to a "
        f"narrower one, {100 * stored['ratio']:g} % of channels by L2 norms; Torch-Pruning cuts in place. The "
        "machine did other work too: ratios tell more than seconds.\n"
    )
    yield (
        "| network | parameters | couplings | trace | Torch-Pruning | ratio | plan | fold | Torch-Pruning | ratio |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, network in stored["networks"].items():
        seconds = network["seconds"]
        cells = []
        for what in ("trace", "fold"):
            own, other = seconds[f"llmfold {what}"], seconds[f"Torch-Pruning {what}"]
            plan = [] if what == "trace" else [f"{seconds['llmfold plan']:.2f}"]
            cells += [*plan, f"{own:.2f}", f"{other:.2f}", f"{own / other:.1f}"]
        yield f"| {name} | {network['parameters']:,} | {network['couplings']} | " + " | ".join(cells) + " |"
    yield (
        f"\nFolds at {100 * stored['ratio']:g} % of parameters, once: saved, loaded strictly into a module of the "
        "narrower shapes, and run. Statistics are measured on eight images of noise.\n"
    )
    yield "| network | fold | parameters left | seconds | loaded, finite and the same scores |"
    yield "|---|---|---:|---:|---|"
    for name, network in stored["networks"].items():
        for what, fold in network["folds"].items():
            share = 100 * fold["parameters"] / network["parameters"]
            word = "yes" if fold["finite"] and fold["same"] else "no"
            yield f"| {name} | {what} | {share:.1f} % | {fold['seconds']:.1f} | {word} |"
    yield f"\nCommand: `{stored['command']}`\n"
    yield f"Measured on {place(stored)}.\n"


def write_page(results: Path = RESULTS) -> None:
    """Tables and plots of all networks.

    Args:
        results: folder that holds the measurements in ``vision``, and gets the page.
    """
    folder = results / FOLDER.name
    files = sorted(folder.glob("resnet*.json"))
    if not files:
        sys.exit("nothing has been measured: see --help")
    page = [(Path(__file__).parent / "vision_head.md").read_text(encoding="utf-8")]
    for path in files:
        found = json.loads(path.read_text())
        table, title = Table(found), path.stem.replace("resnet", "ResNet")
        page += lines(title, table)
        page += order_lines(table)
        for axis, words in AXES.items():
            name = f"{path.stem}.svg" if axis == "channels" else f"{path.stem}-{axis}.svg"
            (folder / name).write_text(plot(title, table, axis), encoding="utf-8")
            page.append(f"![Accuracy of {title} against {words}, by method.]({folder.name}/{name})\n")
        page.append(f"Measured on {place(found)}.\n")
    if (tracing := folder / "tracing.json").exists():
        page += ["## Networks of real size\n", *tracing_lines(json.loads(tracing.read_text()))]
    drifts = sorted(folder.glob("drift-*.json"))
    if drifts:
        page.append((Path(__file__).parent / "vision_drift.md").read_text(encoding="utf-8"))
    for path in drifts:
        page += drift_lines(path)
    text = "\n".join(page)
    (results / "vision.md").write_text(text.rstrip() + "\n", encoding="utf-8")
