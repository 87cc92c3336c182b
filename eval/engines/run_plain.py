"""Runner of models as they are: see quantisers.py."""

from importlib.metadata import version

from quantising import load, perplexity
from runner import serve


def answer(job):
    """See quantisers.py."""
    return {"version": version("transformers"), "perplexity": perplexity(load(job), job)}


serve(answer)
