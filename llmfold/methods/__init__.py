"""Methods of folding: what they look at, and how the engine runs them one layer at a time."""
