"""Perplexity and fidelity of one model: the same as ``llmfold eval``. See ``python eval/perplexity.py --help``."""

import sys

from llmfold.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
