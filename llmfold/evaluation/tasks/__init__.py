"""Task files for lm-eval that read local files."""
