"""Pruning baselines behind the interface of the folding methods, each faithful to its paper."""
