"""The checkpoint that ships with llmfold: a 3.4 M parameter Llama trained on Wikipedia for this project."""

from pathlib import Path

DEMO_NAME = "demo"


def demo_folder() -> Path:
    """Folder of the demo checkpoint inside the installed package."""
    return Path(__file__).parent / "wiki-llama"
