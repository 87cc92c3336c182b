"""compare.md: the tables of a comparison with everything that a reader needs to check them."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmfold.experiments.table import Section, markdown


def document(
    head: Mapping[str, Any],
    dense: Mapping[str, Any],
    sections: Sequence[Section],
    *,
    decoder: bool,
    picture: str | None,
) -> str:
    """Render compare.md.

    Args:
        head: model, command, versions and machine, as in compare.json.
        dense: protocols, as in compare.json.
        sections: one table for every amount.
        decoder: whether fractions are of the decoder layers' parameters.
        picture: file name of the chart, if there is one.
    """
    title = f"{head['model']}: methods compared"
    lines = [f"# {title}", ""]
    if picture:
        lines += [f"![{title}]({picture})", ""]
    for section in sections:
        lines += [f"## {section.heading}", "", markdown(section, decoder=decoder)]
    lines += [
        f"- Perplexity: {dense['protocol']}.",
        "- Excess log-ppl: log(perplexity / dense perplexity).",
        *([f"- Fidelity: {dense['fidelity_protocol']}."] if dense["fidelity_protocol"] else []),
        "- ±: sample standard deviation over seeds, where they differ.",
        "- Seconds: of the fold, without its reload check.",
        "",
        "```",
        head["command"],
        "```",
        "",
        ", ".join(f"{name} {number}" for name, number in head["versions"].items()) + f"; {head['machine']}.",
    ]
    return "\n".join(lines) + "\n"
