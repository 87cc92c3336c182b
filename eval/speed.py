"""Speed and size of a fold beside the dense model: the same as ``llmfold eval --tasks speed``; needs ``--against``."""

import sys

from llmfold.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:], "--tasks", "speed", "--fidelity-tokens", "0"]))
