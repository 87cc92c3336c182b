"""Methods side by side: the same as ``llmfold compare``. See ``python eval/compare.py --help``."""

import sys

from llmfold.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
