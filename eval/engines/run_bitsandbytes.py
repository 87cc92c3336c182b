"""Runner of bitsandbytes through transformers: see quantisers.py."""

from importlib.metadata import version

import torch
from quantising import load, perplexity
from runner import serve
from transformers import BitsAndBytesConfig

WAYS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}


def answer(job):
    """See quantisers.py."""
    how = BitsAndBytesConfig(**WAYS[job["way"]])
    model = load(job, quantization_config=how, device_map="cpu")
    return {"version": version("bitsandbytes"), "perplexity": perplexity(model, job)}


serve(answer)
