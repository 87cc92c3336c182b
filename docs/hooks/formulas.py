r"""Formulas become MathML when the site is built: no script, nothing to fetch, readable by screen readers.

A displayed formula with ``\tag{N}`` gets its number and the anchor ``eq-N``. Numbers run from one in the order of the
page.
"""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_DISPLAYED = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
_SOURCE = re.compile(r"^\$\$$(.*?)^\$\$$", re.DOTALL | re.MULTILINE)
_BARS = re.compile(r"<mo(?: stretchy=\"false\")?>(&#x02016;|&#x0007C;|\|)</mo>")
_TAG = re.compile(r"\\tag\{(\d+)\}")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put an anchor before every numbered formula, where mkdocs sees it.

    Raises:
        PluginError: numbers out of order.
    """
    numbers: list[int] = []

    def anchored(found: re.Match[str]) -> str:
        tag = _TAG.search(found[1])
        if tag is None:
            return found[0]
        numbers.append(int(tag[1]))
        return f'<a id="eq-{tag[1]}"></a>\n\n{found[0]}'

    markdown = _SOURCE.sub(anchored, markdown)
    if numbers != list(range(1, len(numbers) + 1)):
        raise PluginError(f"{page.file.src_uri}: formulas are numbered {numbers}")
    return markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Convert the formulas of a page."""
    html = _INLINE.sub(lambda found: _mathml(unescape(found[1]), "inline"), html)
    return _DISPLAYED.sub(_displayed, html)


def _displayed(found: re.Match[str]) -> str:
    text = unescape(found[1])
    tag = _TAG.search(text)
    number = f"<span>({tag[1]})</span>" if tag else ""
    return f'<div class="formula">{_mathml(_TAG.sub("", text), "block")}{number}</div>'


def _mathml(text: str, display: str) -> str:
    """MathML of a formula; bars of norms keep the height of a letter on both sides, without space around.

    Raises:
        PluginError: a command that is not known.
    """
    found = convert(text.strip(), display=display)
    if "\\" in found:
        raise PluginError(f"a command in {text.strip()} is not known")
    return _BARS.sub(r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', found)
