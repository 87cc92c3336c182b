"""``python -m llmfold``."""

import sys

from llmfold.cli import main

sys.exit(main())
