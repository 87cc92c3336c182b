"""The pipeline: takes one layer at a time from disk to disk."""
