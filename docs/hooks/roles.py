"""Docstrings name other objects by Sphinx roles; pages made by mkdocstrings show the bare name."""

import re
from typing import Any

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):(<code>)~?")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Take the roles out of a page."""
    return _ROLE.sub(r"\1", html)
