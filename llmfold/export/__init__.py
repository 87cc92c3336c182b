"""Checkpoints in the formats of other engines: GGUF, which llama.cpp and what is built on it read."""
