"""The blocks of docs/stack.md, each run by the engine that it is of.

    python eval/engines/blocks.py build/engines               # those whose engine is installed
    python eval/engines/blocks.py build/engines vllm          # one engine's

A comment before a block names its engine and, if it is not the one for all, the fold that ``OUT`` stands for. The
blocks of an engine about one fold are run in one folder, one after another.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import NARROWER, ROOT, Case, build, cases
from environments import ENGINES, ready

PAGE = ROOT / "docs" / "stack.md"
MODEL = "random-llama"
SECONDS = 600
_BLOCK = re.compile(
    r"<!--engine: (?P<engine>[^,>]+?)(?:, fold: (?P<fold>.+?))?-->\n```(?P<kind>\w+)\n(?P<text>.*?)\n```", re.S
)


@dataclass(frozen=True)
class Block:
    """A block of the page: the key of its engine, the variant that is folded, its language and text."""

    engine: str
    fold: str
    kind: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    for found in _BLOCK.finditer(page):
        yield Block(found["engine"], found["fold"] or NARROWER, found["kind"], found["text"])


def run(block: Block, python: Path, place: Path) -> str | None:
    """Run a block in a folder where ``OUT`` is a fold; what went wrong, None where nothing did."""
    if block.kind == "python":
        # A script with a guard, since vLLM starts processes that import it.
        body = "\n".join(f"    {line}" for line in block.text.splitlines())
        (place / "block.py").write_text(f'if __name__ == "__main__":\n{body}\n')
        command = [str(python), "block.py"]
    else:
        command = [str(python), "-m", *block.text.split()]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS} s"
    return None if done.returncode == 0 else (done.stdout + done.stderr)[-4000:]  # vLLM logs its reasons to the first


def place_of(block: Block, case: Case, scratch: Path) -> Path:
    """The folder that the blocks of an engine about a fold share, with ``OUT`` in it."""
    place = scratch / f"{block.engine}-{case.folder.name}"
    if not place.exists():
        place.mkdir()
        (place / "OUT").symlink_to(case.folder)
    return place


def main() -> int:
    """Run the blocks of the engines that are named, or of all that are installed; the exit code."""
    folder, *names = sys.argv[1:] or ["build/engines"]
    work = Path(folder).resolve()
    engines = {engine.key: engine for engine in ENGINES}
    folds: dict[str, Case] = {case.variant: case for case in cases(work, (MODEL,))}
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for block in blocks(PAGE.read_text(encoding="utf-8")):
            engine, case = engines[block.engine], folds[block.fold]
            why = ready(engine, work) if not names or block.engine in names else "not asked for"
            if why is None:
                place = place_of(block, case, Path(scratch))
                error = build(case, work / "smollm2") or run(block, engine.python(work), place)
                failed += error is not None
                print(f"{engine.title}: {error or 'runs'}", flush=True)
            else:
                print(f"{engine.title}: not run, {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
