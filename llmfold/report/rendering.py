"""Templates of reports: those of HTML escape all text, those of Markdown have filters that do."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmfold.report.markdown import code, megabytes, percent, plain, table
from llmfold.report.rows import without_empty_columns


def listed(facts: Mapping[str, Any]) -> str:
    """``torch 2.6, numpy 1.26``; what is None is left out."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("llmfold.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (code, listed, megabytes, percent, plain, table, without_empty_columns)
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def render(template: str, **values: Any) -> str:
    """Fill in the template of a file, such as ``report.html``.

    Raises:
        jinja2.UndefinedError: a value that the template names is missing.
    """
    return _environment().get_template(f"{template}.jinja").render(values)
