"""Lists of options and methods, made from the code when the site is built: ``<!-- NAME -->`` in a page is replaced."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llmfold.commands.methods import describe
from llmfold.config import GROUPS, OF_SAMPLING, FoldConfig
from llmfold.effort import EFFORTS
from llmfold.evaluation.image_options import IMAGE_HEADING, ImageEvaluationSettings
from llmfold.evaluation.options import GROUPS as EVALUATION_GROUPS
from llmfold.evaluation.options import EvaluationSettings
from llmfold.experiments.image_settings import ImageSettings
from llmfold.experiments.settings import GROUPS as COMPARISON_GROUPS
from llmfold.experiments.settings import Settings
from llmfold.export.options import GROUPS as EXPORT_GROUPS
from llmfold.export.options import ExportSettings
from llmfold.images.config import IMAGE_GROUPS, ImageConfig
from llmfold.options import options_of, spelled
from llmfold.registry import methods, users


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the lists into a page."""
    for name, make in TABLES.items():
        mark = f"<!-- {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def fold_options() -> str:
    """Options of a fold, a table for each heading of the command line."""
    return _tables(FoldConfig, GROUPS, "of a fold", _users)


def image_options() -> str:
    """Options of a fold of an image model."""
    return _tables(ImageConfig, IMAGE_GROUPS, "of image models", lambda name: "")


def evaluation_options() -> str:
    """Options of ``llmfold eval``."""
    text = _tables(EvaluationSettings, EVALUATION_GROUPS, "of eval", lambda name: "")
    return f"{text}\n\n{_tables(ImageEvaluationSettings, IMAGE_HEADING, 'of eval', lambda name: '')}"


def comparison_options() -> str:
    """Options of ``llmfold compare``."""
    text = _tables(Settings, COMPARISON_GROUPS, "of compare", lambda name: "")
    return f"{text}\n\n{_tables(ImageSettings, IMAGE_HEADING, 'of compare', lambda name: '')}"


def export_options() -> str:
    """Options of ``llmfold export``."""
    return _tables(ExportSettings, EXPORT_GROUPS, "of export", lambda name: "")


def folding_methods() -> str:
    """Methods that merge units, or repair what their loss does."""
    return _methods(folds=True)


def pruning_methods() -> str:
    """Methods that cut units."""
    return _methods(folds=False)


def _methods(*, folds: bool) -> str:
    flags = {field.name: spelled(field) for field, _ in options_of(FoldConfig)}
    rows = []
    for name, method in methods().items():
        if method.folds == folds:
            data = describe(method)[1].removeprefix("data: ")
            options = ", ".join(f"`{flags[option]}`" for option in sorted(method.options)) or "–"
            rows.append([f"`{name}`", method.summary, data, options, method.citation or "–"])
    return table(["`--method`", "what it does", "data", "options of its own", "published"], rows)


def efforts() -> str:
    """What each effort stands for."""
    rows = []
    for name, effort in EFFORTS.items():
        wide = f"{effort.wide.tokens:,} of {effort.wide.length}" if effort.wide else "as given here"
        most = f" to {effort.most:,}" if effort.most else ""
        steps = f"{effort.refine:,} for {effort.tokens:,} tokens" if effort.refine else "none: closed form"
        rows.append([f"`{name}`", f"{effort.tokens:,}{most}", str(effort.length), wide, steps])
    head = ["`--effort`", "tokens", "tokens of a sequence", "of MLPs above 4,096 neurons", "steps of refinement"]
    return table(head, rows)


def _users(name: str) -> str:
    if name in OF_SAMPLING:
        return " Only where the model samples its own tokens."
    alone = users(name)
    return f" Only by {', '.join(f'`{method}`' for method in alone)}." if alone else ""


def _tables(cls: Any, groups: Mapping[str, str], of: str, note: Callable[[str], str]) -> str:
    parts = []
    for group, heading in groups.items():
        rows = []
        for field, said in options_of(cls):
            if said.group == group:
                names = ", ".join(f"`{word}`" for word in (spelled(field), *said.aliases))
                listed = field.name != "method" or cls is ImageConfig
                choices = said.kind.choices() if said.kind.choices and listed else ()
                values = f" One of {', '.join(f'`{value}`' for value in choices)}." if choices else ""
                help_text = said.help[:1].upper() + said.help[1:].rstrip(".") + "."
                rows.append(
                    [names, f"`{field.name}`", _default(field.default), f"{help_text}{values}{note(field.name)}"]
                )
        title = heading[:1].upper() + heading[1:]
        parts.append(
            f"### {title} {{ #{group}-{of.replace(' ', '-')} }}\n\n" + table(["flag", "name", "default", ""], rows)
        )
    return "\n\n".join(parts)


def _default(value: Any) -> str:
    return "–" if value is None or not isinstance(value, bool | int | float | str) else f"`{value}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES: Mapping[str, Callable[[], str]] = {
    "fold options": fold_options,
    "image options": image_options,
    "evaluation options": evaluation_options,
    "comparison options": comparison_options,
    "export options": export_options,
    "folding methods": folding_methods,
    "pruning methods": pruning_methods,
    "efforts": efforts,
}
