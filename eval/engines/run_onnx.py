"""Runner of ONNX Runtime: see runner.py. The folder is exported by optimum, with a cache, and run on a CPU."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from runner import likeliest, read_texts, serve, timed
from transformers import AutoTokenizer, GenerationConfig


@torch.no_grad()
def answer(job):
    """See runner.py."""
    model = ORTModelForCausalLM.from_pretrained(job["folder"], export=True, trust_remote_code=job["remote_code"])
    scored = torch.tensor([job["ids"]])
    table = model(scored, attention_mask=torch.ones_like(scored)).logits[0].float().log_softmax(-1)
    prompt = torch.tensor([job["prompt"]])
    how = GenerationConfig(max_new_tokens=job["new"], do_sample=False, pad_token_id=0)
    how.eos_token_id = model.generation_config.eos_token_id = None
    mask = torch.ones_like(prompt)
    written, seconds = timed(lambda: model.generate(prompt, attention_mask=mask, generation_config=how))
    return {
        "version": onnxruntime.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "top": likeliest(table),
        "next": table[-1].tolist(),
        "greedy": written[0, prompt.shape[1] :].tolist(),
        "seconds": seconds,
        "read": read_texts(lambda: AutoTokenizer.from_pretrained(job["folder"]), job["texts"]),
    }


serve(answer)
