"""Perplexity as papers measure it: the same as ``llmfold eval --tasks wikitext2``, or on ``--text FILE``."""

import sys

from llmfold.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(["eval", *words, *([] if "--text" in words or "--tasks" in words else ["--tasks", "wikitext2"])]))
