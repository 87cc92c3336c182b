"""Task files for lm-eval that read local files; ``eval/tasks`` in the repository is this folder."""
