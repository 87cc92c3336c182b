"""What the picture of a comparison shows."""

import xml.etree.ElementTree as ET

from llmfold.experiments.chart import chart
from llmfold.experiments.results import Row, Spread


def row(method: str, ratio: float, perplexity: float) -> Row:
    spread = Spread(perplexity)
    return Row(method, {"ratio": ratio}, 1, perplexity=spread, excess=spread, removed=Spread(ratio))


def lines(rows: list[Row]) -> dict[str, int]:
    """Points of every line by its name."""
    svg = chart("model", "text", 2.0, rows, decoder=False)
    assert svg is not None
    space = "{http://www.w3.org/2000/svg}"
    named = {
        "".join(text.itertext()).rsplit(" ", 1)[0]: len(group.findall(f"{space}circle"))
        for group in ET.fromstring(svg).iter(f"{space}g")
        for text in group.findall(f"{space}text")
        if group.get("class", "").startswith("s")
    }
    return {name.strip(): points for name, points in named.items()}


def test_every_variant_has_a_line_while_a_person_can_tell_them_apart() -> None:
    rows = [row(f"flap:attention_ratio={i}", ratio, 3) for i in range(8) for ratio in (0.1, 0.2)]
    assert lines(rows) == {f"flap:attention_ratio={i}": 2 for i in range(8)}


def test_of_many_variants_the_best_at_every_amount_stays() -> None:
    ratios = (0.1, 0.2, 0.3)
    rows = [row(f"flap:attention_ratio={i}", r, 3 + abs(i - 10 * r)) for i in range(8) for r in ratios]
    rows += [row("self", r, 2 + r) for r in ratios]
    assert lines(rows) == {"flap, best of 8": 3, "self": 3}
    svg = chart("model", "text", 2.0, rows, decoder=False)
    best = [row("flap, best of 8", r, 3) for r in ratios] + rows[-3:]
    assert svg == chart("model", "text", 2.0, best, decoder=False)
