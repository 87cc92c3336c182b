"""The kinds of faults that real folders have, in the order that seeds draw from: a new one goes to an end."""

from messy.faults import config_bad, config_keys, files, rotary, small_files, tensors, weight_files
from messy.faults.kind import Kind

_MODULES = (config_keys, config_bad, rotary, tensors, weight_files, files, small_files)
KINDS: dict[str, Kind] = {name: kind for module in _MODULES for name, kind in module.KINDS.items()}
_LIGHT = (
    "a config key is missing",
    "a config key is null",
    "a config key is left over or unusual",
    "rotary positions",
    "the dtype of the config",
    "tensors in another dtype",
    "the head",
    "the flag of the head",
    "names of tensors",
    "old buffers",
    "shards",
    "the index",
    "metadata of the header",
    "extreme values",
    "a file beside",
    "another name of weights beside",
    "links",
    "no generation config",
    "the generation config",
    "no tokenizer",
    "settings of the tokenizer",
    "ids of the tokenizer",
)
_GRAVE = (
    "a bad config key",
    "bad rotary positions",
    "a config that is no object",
    "bad dtypes of tensors",
    "prefixes of tensors",
    "a tensor is missing",
    "a tensor too many",
    "a bad tensor",
    "a bad index",
    "bad metadata of the header",
    "files of weights",
    "a bad file beside",
    "a bad generation config",
    "bad settings of the tokenizer",
)
LIGHT = {name: KINDS[name] for name in _LIGHT}
"""What stock transformers mostly loads."""
GRAVE = {name: KINDS[name] for name in _GRAVE}
"""What stock transformers mostly refuses, or loads as another model."""
