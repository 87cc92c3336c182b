"""Streaming: the engine that takes one layer at a time from disk to disk."""
