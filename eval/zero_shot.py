"""Zero-shot accuracy through lm-eval: the same as ``llmfold eval --tasks folding``, other ``--tasks`` if given."""

import sys

from llmfold.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(["eval", *words, *([] if "--tasks" in words else ["--tasks", "folding", "--fidelity-tokens", "0"])]))
