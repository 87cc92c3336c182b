"""Folding: merging clusters of neurons and heads, as pure tensor functions."""
