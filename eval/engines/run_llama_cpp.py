"""Runner of llama.cpp: see runner.py. The folder becomes a GGUF file by ``llmfold export gguf``, beside the engine.

It tells log-probabilities after a prompt alone, so every position is a prompt of its own.
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from runner import likeliest, read_texts, serve, timed

from llmfold.evaluation.llama_cpp import llama_cpp
from llmfold.export.options import ExportSettings
from llmfold.export.writer import export_gguf

CONTEXT = 256
TYPES = {"float32": "f32", "bfloat16": "bf16"}


def written(engine, prompt, count):
    """Greedy text of ``count`` tokens; llama.cpp stops where a text ends, and is asked again from there."""
    found = []
    while len(found) < count:
        found += engine.greedy(prompt + found, count - len(found))
        if len(found) < count:
            table = engine.log_probabilities(prompt + found)
            found.append(max(range(len(table)), key=table.__getitem__))
    return found


def answer(job):
    """See runner.py."""
    exact = job["dtype"] == "float32"
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.gguf"
        settings = ExportSettings(job["folder"], str(path), type=TYPES[job["dtype"]], pre=job["pre"])
        done = export_gguf(settings, print)
        with llama_cpp(path, CONTEXT, 1, exact=exact) as engine:
            ids = job["ids"]
            table = torch.tensor([engine.log_probabilities(ids[: i + 1]) for i in range(len(ids))])
            greedy, seconds = timed(lambda: written(engine, job["prompt"], job["new"]))
            return {
                "version": version("xllamacpp"),
                "dtype": done.type,
                "architecture": done.architecture,
                "top": likeliest(table),
                "next": table[-1].tolist() if exact else None,
                "greedy": greedy,
                "seconds": seconds,
                "read": read_texts(lambda: lambda text: {"input_ids": engine.tokens(text)}, job["texts"]),
            }


serve(answer)
