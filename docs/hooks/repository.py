"""Files of the repository that pages link to become files of the site, so that a build checks every link.

A page may then link as a code host shows it: ``../eval/results/scale.md`` from a page of this folder, and
``docs/options.md`` from a page at the top of the repository.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = "docs"
_ALWAYS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")
_RESULTS = "eval/results"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add all results, what pages link to, what that links to, and so on."""
    known = {file.src_uri for file in files}
    pages = (Path(str(file.abs_src_path)) for file in files.documentation_pages())
    waiting = [*_ALWAYS, *map(_place, [*sorted((_ROOT / _RESULTS).rglob("*.md")), *pages])]
    while waiting:
        place = waiting.pop()
        path = _ROOT / place
        if _address(place) not in known:
            files.append(File.generated(config, _address(place), abs_src_path=str(path)))
            known.add(_address(place))
        if path.suffix == ".md":
            linked = (_target(place, found[3]) for found in _LINK.finditer(path.read_text(encoding="utf-8")))
            waiting += [other for other in linked if other is not None and _address(other) not in known]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links from places in the repository to places in the site."""
    place = _place(Path(str(page.file.abs_src_path)))
    return _LINK.sub(_rewritten(place), markdown)


def _rewritten(place: str) -> Callable[[re.Match[str]], str]:
    def rewrite(found: re.Match[str]) -> str:
        picture, words, link, anchor = found.groups(default="")
        target = _target(place, link)
        if target is None:
            return words if (_ROOT / place).parent.joinpath(link).is_dir() else found[0]
        address = posixpath.relpath(_address(target), posixpath.dirname(_address(place)) or ".")
        return f"{picture}[{words}]({address}{anchor})"

    return rewrite


def _target(place: str, link: str) -> str | None:
    """The file of the repository that a link on a page means; of a folder, its page; None where there is none."""
    named = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    return next((name for name in (named, f"{named}/README.md") if (_ROOT / name).is_file()), None)


def _place(path: Path) -> str:
    return path.resolve().relative_to(_ROOT).as_posix()


def _address(place: str) -> str:
    """Where a file of the repository lies in the site: pages of this folder at the top, all else by its path."""
    return place.removeprefix(f"{_PAGES}/")
