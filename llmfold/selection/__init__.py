"""Selection: which units stay, judged by the output error that is left once the others are refit."""
