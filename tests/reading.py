"""Tiny models that can read: a tokenizer of single letters with BOS."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"


def teach(folder: Path) -> Path:
    """Give a model of 64 tokens or more a tokenizer."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{letter: i for i, letter in enumerate(LETTERS, 3)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder
