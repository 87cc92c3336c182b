"""The blocks of docs/stack.md, each run by the engine that it is of.

    python eval/engines/blocks.py build/engines               # those whose engine is installed
    python eval/engines/blocks.py build/engines vllm          # one engine's

A comment before a block names its engine and, if it is not the one for all, the fold that ``OUT`` stands for.
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


def run(block: Block, python: Path, fold: Path) -> str | None:
    """Run a block where ``OUT`` is a fold; what went wrong, None where nothing did."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "OUT").symlink_to(fold)
        if block.kind == "python":
            # A script with a guard, since vLLM starts processes that import it.
            body = "\n".join(f"    {line}" for line in block.text.splitlines())
            (Path(place) / "block.py").write_text(f'if __name__ == "__main__":\n{body}\n')
            command = [str(python), "block.py"]
        else:
            command = [str(python), "-m", *block.text.split()]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"not done after {SECONDS} s"
        return None if done.returncode == 0 else done.stderr[-2000:]


def main() -> int:
    """Run the blocks of the engines that are named, or of all that are installed; the exit code."""
    folder, *names = sys.argv[1:] or ["build/engines"]
    work = Path(folder).resolve()
    engines = {engine.key: engine for engine in ENGINES}
    folds: dict[str, Case] = {case.variant: case for case in cases(work, (MODEL,))}
    failed = 0
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        engine = engines[block.engine]
        why = ready(engine, work) if not names or block.engine in names else "not asked for"
        if why is None:
            case = folds[block.fold]
            error = build(case, work / "smollm2") or run(block, engine.python(work), case.folder)
            failed += error is not None
            print(f"{engine.title}: {error or 'runs'}", flush=True)
        else:
            print(f"{engine.title}: not run, {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
