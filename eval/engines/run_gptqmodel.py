"""Runner of GPTQModel: see quantisers.py. What it writes is read again by it, from the disk."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from quantising import perplexity, tokens_of
from runner import serve

_CORES = os.cpu_count() or 1
os.cpu_count = lambda: max(_CORES, 4)  # on fewer it allots itself fewer threads than it asks for, and ends


def answer(job):
    """See quantisers.py."""
    adaptive = "auto_map" in json.loads((Path(job["folder"]) / "config.json").read_text())
    how = QuantizeConfig(bits=4, group_size=job["group"], sym=True)
    model = GPTQModel.load(job["folder"], how, device="cpu", trust_remote_code=adaptive)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens_of(job)]
    model.quantize(rows, batch_size=1)
    with tempfile.TemporaryDirectory() as place:
        model.save(place)
        again = GPTQModel.load(place, device="cpu", backend=BACKEND.TORCH, trust_remote_code=adaptive)
        found = perplexity(again.model, job)
    return {"version": version("gptqmodel"), "perplexity": found}


serve(answer)
