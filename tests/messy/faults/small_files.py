"""Fields of the generation config and of the tokenizer's files, and these files missing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from messy.draft import GENERATION, TOKENIZER, TOKENIZER_CONFIG, Draft, json_bytes
from messy.faults.kind import Kind


def _no_file(draft: Draft, value: Sequence[str]) -> None:
    for name in value:
        draft.files.pop(name, None)


def _edit(draft: Draft, value: tuple[str, Mapping[str, Any]]) -> None:
    if value[0] in draft.files and draft.files[value[0]] is not None:
        draft.edit(*value)


def _tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Draft], None]:
    def edit(draft: Draft) -> None:
        content = draft.json(TOKENIZER)
        if content.get("model"):
            change(content)
            draft.files[TOKENIZER] = json_bytes(content)

    return edit


def _call(draft: Draft, value: Callable[[Draft], None]) -> None:
    value(draft)


def _more_ids(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["z" * 9] = 99


def _added(content: dict[str, Any]) -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": 40, "content": "<|im_start|>", **flags})


def _pairs(name: str, values: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple((name, value) for value in values)


_LETTERS_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json")
_GENERATIONS: tuple[Mapping[str, Any], ...] = (
    {"bos_token_id": -1, "eos_token_id": 999},
    {"bos_token_id": [7, 8]},
    {"eos_token_id": [2, 3], "pad_token_id": 0},
    {"do_sample": False, "temperature": 0.5, "top_p": 0.9},
    {"do_sample": True, "temperature": 0.6, "top_k": 20},
    {"temperature": 0.0},
    {"max_length": 4096},
    {"max_new_tokens": 64},
    {"_name_or_path": "/home/somebody/model"},
    {"transformers_version": "4.30.0", "_from_model_config": True},
    {"cache_implementation": "hybrid"},
    {"suppress_tokens": [3], "forced_bos_token_id": 1},
    {"no such option": {"x": [1]}},
    {"num_beams": 4, "early_stopping": True},
)
_GRAVE_GENERATIONS: tuple[Mapping[str, Any], ...] = (
    {"bos_token_id": "1"},
    {"max_length": "x"},
    {"temperature": -1},
    {"cache_implementation": "no such"},
    {"early_stopping": 3},
    {"num_return_sequences": 3},
    {"watermarking_config": {"x": 1}},
    {"pad_token_id": -5},
    {"compile_config": 3},
)
_TOKENIZER_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"tokenizer_class": "LlamaTokenizer"},
    {"tokenizer_class": "LlamaTokenizerFast", "legacy": False},
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "Qwen2Tokenizer"},
    {"tokenizer_class": "GPT2TokenizerFast"},
    {"tokenizer_class": None},
    {"padding_side": "left", "truncation_side": "left"},
    {"add_bos_token": False, "add_eos_token": True},
    {"add_prefix_space": True},
    {"model_max_length": 10**30},
    {"model_max_length": 16},
    {"clean_up_tokenization_spaces": True},
    {"name_or_path": "/home/somebody/model", "tokenizer_file": "/home/somebody/tokenizer.json"},
    {"chat_template": "{{ messages }}"},
    {"chat_template": [{"name": "default", "template": "{{ messages }}"}]},
    {"pad_token": "</s>", "unk_token": "<unk>"},
    {"pad_token": "<|new|>"},
    {"bos_token": None},
    {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False}},
    {"additional_special_tokens": ["a", "<|new|>"]},
    {"added_tokens_decoder": {"45": {"content": "<|x|>", "special": True}}},
    {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}},
    {"sp_model_kwargs": {}, "use_default_system_prompt": False},
)
_GRAVE_TOKENIZER_SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"tokenizer_class": "NoSuchTokenizer"},
    {"tokenizer_class": "BertTokenizer"},
    {"tokenizer_class": 3},
    {"model_max_length": "long"},
    {"chat_template": 3},
    {"padding_side": "middle"},
    {"added_tokens_decoder": {"x": {}}},
    {"extra_special_tokens": ["a"]},
    {"extra_special_tokens": {"image_token": "<image>"}},
)
KINDS = {
    "no generation config": Kind(_no_file, ((GENERATION,),)),
    "the generation config": Kind(_edit, _pairs(GENERATION, _GENERATIONS)),
    "no tokenizer": Kind(
        _no_file, (_LETTERS_FILES, (TOKENIZER,), (TOKENIZER_CONFIG,), (TOKENIZER_CONFIG, "special_tokens_map.json"))
    ),
    "settings of the tokenizer": Kind(_edit, _pairs(TOKENIZER_CONFIG, _TOKENIZER_SETTINGS)),
    "ids of the tokenizer": Kind(_call, (_tokenizer(_more_ids), _tokenizer(_added))),
    "a bad generation config": Kind(_edit, _pairs(GENERATION, _GRAVE_GENERATIONS)),
    "bad settings of the tokenizer": Kind(_edit, _pairs(TOKENIZER_CONFIG, _GRAVE_TOKENIZER_SETTINGS)),
}
