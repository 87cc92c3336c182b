"""Runner of llm-compressor: see quantisers.py. What it writes is read again by transformers, from the disk."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import tempfile
from importlib.metadata import version

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from quantising import load, perplexity, tokens_of
from runner import serve


def answer(job):
    """See quantisers.py."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": job["group"]}
    rounds = GPTQModifier if job["way"] == "GPTQ" else QuantizationModifier
    recipe = [rounds(config_groups={"weights": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"])]
    if job["way"] == "AWQ":
        recipe.insert(0, AWQModifier())
    tokens = tokens_of(job)
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    model = load(job)
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=tokens.shape[1], num_calibration_samples=len(tokens)
    )
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place, save_compressed=True)
        found = perplexity(load({**job, "folder": place}), job)
    return {"version": version("llmcompressor"), "perplexity": found}


serve(answer)
