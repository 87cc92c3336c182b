"""Train a small mixture of experts on Wikipedia, since no real one is small enough to try folding on two cores.

    python eval/models/wiki_moe.py build/wiki-moe --text wikipedia-train.txt.xz --minutes 30

A Mixtral of 6 layers, hidden 192, 4 experts of 256 neurons of which 2 see a token, with the tokenizer of wiki-llama.
What half an hour of a core makes of it is a toy, and tables must say so; its experts are trained, which random ones are
not.
"""

import argparse
import lzma
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from llmfold.demo import demo_folder

SEED, LENGTH, BATCH = 0, 256, 16
PEAK_RATE, WARM_UP, LAST_RATE = 3e-3, 100, 0.05
ARTICLES = 40_000_000
"""Characters of the text that are read."""


def config_of(vocabulary: int) -> MixtralConfig:
    """The model's config; about 6 M parameters."""
    return MixtralConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
        bos_token_id=1,
        eos_token_id=2,
    )


def token_stream(tokenizer: Path, text: Path) -> Tensor:
    """All tokens of the head of a text, (n,) int64."""
    with lzma.open(text, "rt", encoding="utf-8") as file:
        content = file.read(ARTICLES)
    coder = AutoTokenizer.from_pretrained(tokenizer)
    pieces = [content[start : start + 200_000] for start in range(0, len(content), 200_000)]
    ids = [np.array(coder(piece, add_special_tokens=False)["input_ids"], np.int64) for piece in pieces]
    return torch.from_numpy(np.concatenate(ids))


def rate_at(step: int, share: float) -> float:
    """Learning rate of a step, ``share`` of the time being spent: warm-up, then a cosine."""
    decay = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + np.cos(np.pi * min(share, 1.0)))
    return float(PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * decay)


def train(model: MixtralForCausalLM, stream: Tensor, seconds: float) -> int:
    """Train for so many seconds of processor time; how many steps those were."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    generator, begin, step = torch.Generator().manual_seed(SEED), time.process_time(), 0
    while (spent := time.process_time() - begin) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, spent / seconds)
        starts = torch.randint(len(stream) - LENGTH, (BATCH,), generator=generator)
        tokens = torch.stack([stream[start : start + LENGTH] for start in starts.tolist()])
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            print(f"step {step}, {spent:.0f} of {seconds:.0f} s, loss {float(loss):.3f}", flush=True)
    return step


def main() -> None:
    """Train, and save a folder that transformers loads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="of articles, compressed by xz")
    parser.add_argument("--minutes", type=float, default=30.0, help="of processor time (default: %(default)g)")
    arguments = parser.parse_args()
    tokenizer = demo_folder()
    torch.manual_seed(SEED)
    model = MixtralForCausalLM(config_of(len(AutoTokenizer.from_pretrained(tokenizer))))
    steps = train(model, token_stream(tokenizer, arguments.text), 60 * arguments.minutes)
    model.config.output_router_logits = False
    model.save_pretrained(arguments.folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, arguments.folder)
    print(f"{arguments.folder}: {steps} steps of {BATCH} x {LENGTH} tokens")


if __name__ == "__main__":
    main()
