"""What runners of quantisers share: the model of a job, its tokens, its perplexity. Their environments see llmfold."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from llmfold.evaluation.perplexity import Windows, score


def load(job, **options):
    """The model of a job, by transformers, in float32 unless told otherwise."""
    adaptive = "auto_map" in json.loads((Path(job["folder"]) / "config.json").read_text())
    options = {"dtype": torch.float32, "trust_remote_code": adaptive, **options}
    return AutoModelForCausalLM.from_pretrained(job["folder"], **options).eval()


def tokens_of(job):
    """What it is calibrated on (sequences × tokens): text of the dense model, as the fold sampled it."""
    return torch.from_numpy(np.load(job["calibration"])).long()[: job["sequences"]]


def perplexity(model, job):
    """Of a model on the windows of a job."""
    windows = torch.from_numpy(np.load(job["windows"]))
    with torch.no_grad():
        return score(model, Windows(windows, windows.shape[1], "")).value
