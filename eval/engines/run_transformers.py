"""Runner of transformers, any release: see runner.py.

With ``full`` it is the reference: attention is eager, and greedy text is confirmed by one pass that has no cache.
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from runner import TIE, likeliest, read_texts, reason, serve, timed
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def load(job, remote_code):
    """The model of a job, with every tensor found."""
    options = {"attn_implementation": "eager"} if job.get("full") else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        job["folder"], torch_dtype="auto", trust_remote_code=remote_code, output_loading_info=True, **options
    )
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value and key != "error_msgs"}
    if wrong or info.get("error_msgs"):
        raise ValueError(f"loaded with {wrong or info['error_msgs']}")
    return model.eval()


@torch.no_grad()
def answer(job):
    """See runner.py."""
    without = None
    if job["remote_code"]:
        try:
            load(job, False)
        except Exception as error:
            without = reason(error)
    model = load(job, job["remote_code"])
    table = model(torch.tensor([job["ids"]])).logits[0].float().log_softmax(-1)
    prompt = torch.tensor([job["prompt"]])
    how = GenerationConfig(max_new_tokens=job["new"], do_sample=False, pad_token_id=0)
    how.eos_token_id = model.generation_config.eos_token_id = None
    mask = torch.ones_like(prompt)
    if not job.get("full"):
        model.generate(
            prompt, attention_mask=mask, generation_config=GenerationConfig(max_new_tokens=2, pad_token_id=0)
        )
    written, seconds = timed(lambda: model.generate(prompt, attention_mask=mask, generation_config=how))
    if job.get("full"):
        import numpy

        again = model(written, use_cache=False).logits[0, prompt.shape[1] - 1 : -1].float().log_softmax(-1)
        behind = again.max(-1).values - again.gather(-1, written[0, prompt.shape[1] :, None])[:, 0]
        if model.dtype == torch.float32 and behind.max() > TIE:
            raise ValueError("with its cache it writes another text than without")
        numpy.save(job["full"], table.numpy())
    return {
        "among": likeliest(again) if job.get("full") else None,
        "version": transformers.__version__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "without_flag": without,
        "top": likeliest(table),
        "next": table[-1].tolist() if model.dtype == torch.float32 else None,
        "greedy": written[0, prompt.shape[1] :].tolist(),
        "seconds": seconds,
        "read": read_texts(lambda: AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=False), job["texts"]),
    }


serve(answer)
