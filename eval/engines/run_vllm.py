"""Runner of vLLM on a CPU: see runner.py. Log-probabilities of the prompt are those of its 20 likeliest tokens."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    TOKENIZERS_PARALLELISM="false",
)

import gc

import torch
import vllm
from runner import TOP, read_texts, serve, timed
from vllm import LLM, SamplingParams


def ranked(found):
    """Ids and log-probabilities of a position, the likeliest first and no more than asked for."""
    best = sorted(found.items(), key=lambda item: -item[1].logprob)[:TOP]
    return [[token for token, _ in best], [told.logprob for _, told in best]]


def answer(job):
    """See runner.py."""
    engine = LLM(
        job["folder"],
        trust_remote_code=job["remote_code"],
        dtype=job["dtype"],  # by itself it computes files of float32 in bfloat16
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=1,
        max_logprobs=TOP,
        skip_tokenizer_init=not isinstance(job["texts"], list),
        enable_prefix_caching=False,
    )
    try:
        score = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=TOP, logprobs=TOP, detokenize=False)
        scored = engine.generate({"prompt_token_ids": job["ids"]}, score, use_tqdm=False)[0]
        top = [ranked(found) for found in scored.prompt_logprobs[1:]] + [ranked(scored.outputs[0].logprobs[0])]
        go_on = SamplingParams(temperature=0, max_tokens=job["new"], ignore_eos=True, detokenize=False)
        written, seconds = timed(lambda: engine.generate({"prompt_token_ids": job["prompt"]}, go_on, use_tqdm=False))
        return {
            "version": vllm.__version__,
            "dtype": str(engine.llm_engine.model_config.dtype).removeprefix("torch."),
            "top": top,
            "greedy": list(written[0].outputs[0].token_ids),
            "seconds": seconds,
            "read": read_texts(engine.get_tokenizer, job["texts"]),
        }
    finally:
        gc.collect()


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(answer)
