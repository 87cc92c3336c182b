"""Run every benchmark, each in a process of its own, and leave one Markdown table of each in a folder.

python benchmarks/all.py --output results
Options other than --output and --folder go to every benchmark; --size llama-7b, for one, runs the full size on a CPU
as well. --folder is where the fold makes its checkpoint, which takes 40 GB at that size.
"""

import argparse
import subprocess
import sys
from pathlib import Path

NAMES = ("gram", "assign", "centroids", "ward", "elimination", "clustering", "fold")


def main() -> int:
    """Exit with 1 if any benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--folder", type=Path, help="folder for the checkpoint; the system's temporary folder")
    options, rest = parser.parse_known_args()
    failed = []
    for name in NAMES:
        print(f"== {name}", file=sys.stderr, flush=True)
        script = Path(__file__).with_name(f"{name}.py")
        place = ["--folder", options.folder] if name == "fold" and options.folder else []
        done = subprocess.run([sys.executable, script, "--output", options.output, *place, *rest], check=False)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
