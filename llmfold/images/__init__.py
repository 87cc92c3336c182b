"""Image models of transformers by the command line: a folder in, a narrower folder out.

What is folded, and how, is the business of :mod:`llmfold.modules`; here a config says what the model is and how wide.
"""
