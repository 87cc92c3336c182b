"""llama.cpp on a GGUF file, where the package xllamacpp is installed, through the server that it holds."""

import importlib.util
import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from llmfold.errors import CheckpointError

_SILENT = -1
_EVERYTHING = 1 << 30
_CERTAIN = 1e6


def is_installed() -> bool:
    """Whether files can be both written (gguf) and run (xllamacpp)."""
    return all(importlib.util.find_spec(name) is not None for name in ("gguf", "xllamacpp"))


class LlamaCpp:
    """A model that llama.cpp holds; see :func:`llama_cpp`."""

    def __init__(self, address: str) -> None:
        """Take the address of a server."""
        self._address = address

    @cached_property
    def _letter(self) -> int:
        """The token of a whole letter."""
        return self.tokens("a")[-1]

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of all tokens after a prompt of token ids, by id."""
        # Told are those before one is chosen. None are where that ends the text, or is a part of a letter.
        chosen = [[self._letter, _CERTAIN]]
        words: dict[str, Any] = {"n_predict": 1, "temperature": 0, "logit_bias": chosen, "n_probs": _EVERYTHING}
        answer = self._ask("/completion", prompt=list(ids), **words)
        listed = answer["completion_probabilities"][0]["top_logprobs"]
        found = [float("-inf")] * len(listed)
        for each in listed:
            found[each["id"]] = each["logprob"]
        return found

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest tokens after a prompt of token ids, one after another, up to one that ends the text."""
        answer = self._ask("/completion", prompt=list(ids), n_predict=count, temperature=0, return_tokens=True)
        return [int(token) for token in answer["tokens"]]

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, with what the model's tokenizer adds to it."""
        answer = self._ask("/tokenize", content=text, add_special=True)
        return [int(token) for token in answer["tokens"]]

    def speeds(self, prompt: Sequence[int], count: int) -> tuple[float, float]:
        """Tokens per second by llama.cpp's own clock: of reading a prompt of token ids, and of writing ``count``."""
        words: dict[str, Any] = {"n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        timings = self._ask("/completion", prompt=list(prompt), **words)["timings"]
        return float(timings["prompt_per_second"]), float(timings["predicted_per_second"])

    def _ask(self, path: str, **words: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, json.dumps(words).encode(), headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@contextmanager
def llama_cpp(path: Path, context: int, threads: int, *, exact: bool = False) -> Iterator[LlamaCpp]:
    """Load a GGUF file on the CPU.

    Args:
        path: of the file.
        context: tokens of a sequence.
        threads: of the CPU.
        exact: keep keys and values in float32, which llama.cpp rounds to half of that by default.

    Raises:
        CheckpointError: llama.cpp does not load it.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = context, 1, 0
    parameters.verbosity, parameters.warmup, parameters.port = _SILENT, False, 0
    for each in (parameters.cpuparams, parameters.cpuparams_batch):
        each.n_threads = threads
    if exact:
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    try:
        server = xllamacpp.Server(parameters)
    except Exception as error:  # it has no class of its own for files that it refuses
        raise CheckpointError(f"llama.cpp does not load {path.name}: {error}") from error
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server
