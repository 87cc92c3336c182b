"""How good a model is: perplexity on a text, fidelity to the dense model, and tables that compare methods."""
