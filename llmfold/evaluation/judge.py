"""Measuring models against one dense model: the same windows of the same text, the same held-back self tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfold.evaluation.defaults import BATCH, FIDELITY_TOKENS
from llmfold.evaluation.fidelity import SEED, Fidelity, Reference, fidelity, held_back_tokens, reference
from llmfold.evaluation.loading import Loading, opened
from llmfold.evaluation.perplexity import Perplexity, Windows, score
from llmfold.evaluation.samples import PROMPTS, Sample, continued, find_tokenizer


@dataclass(frozen=True)
class Verdict:
    """Perplexity on the text, fidelity to the dense model, continued prompts; None where it was not asked for."""

    perplexity: Perplexity | None
    fidelity: Fidelity | None
    texts: list[str] | None = None


class Judge:
    """Measures the dense model once and any number of models against it."""

    def __init__(
        self,
        dense: Path,
        windows: Windows | None,
        loading: Loading,
        *,
        batch: int = BATCH,
        tokens: int = FIDELITY_TOKENS,
        writes: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Set up; nothing is loaded yet.

        Args:
            dense: folder of the dense model.
            windows: of the text; None for no perplexity.
            loading: how all models are loaded.
            batch: sequences in one forward pass.
            tokens: about how many to sample from the dense model; 0 for no fidelity.
            writes: whether models continue prompts, too, by the dense model's tokenizer.
            say: told what begins.
        """
        self._folder, self._windows, self._loading = dense, windows, loading
        self._batch, self._tokens, self._say = batch, tokens, say
        self._tokenizer = find_tokenizer(dense) if writes else None
        self._reference: Reference | None = None
        self._dense: Verdict | None = None

    def dense(self) -> Verdict:
        """Measure the dense model, and keep what the others are compared with."""
        if self._dense is None:
            tokens = None
            with opened(self._folder, self._loading) as model:
                if self._tokens:
                    self._say(f"sampling {self._tokens:,} tokens from the dense model")
                    tokens = held_back_tokens(self._folder, model, tokens=self._tokens)
                self._say("measuring the dense model")
                perplexity = score(model, self._windows, batch=self._batch) if self._windows else None
                if tokens is not None:
                    self._reference = reference(self._folder, model, tokens, batch=self._batch)
                texts = self._written(model)
            same = Fidelity(0.0, 1.0, tokens.numel(), len(tokens)) if tokens is not None else None
            self._dense = Verdict(perplexity, same, texts)
        return self._dense

    def measure(self, folder: Path, *, remote_code: bool = False) -> Verdict:
        """Measure a model, and the dense one before it if that has not been done."""
        self.dense()
        with opened(folder, self._loading, remote_code=remote_code) as model:
            return Verdict(
                score(model, self._windows, batch=self._batch) if self._windows else None,
                fidelity(self._reference, model, batch=self._batch) if self._reference else None,
                self._written(model),
            )

    def _written(self, model: Any) -> list[str] | None:
        return continued(model, self._tokenizer) if self._tokenizer else None

    def samples(self, verdict: Verdict) -> list[Sample]:
        """Prompts as the dense model and the one of ``verdict`` continue them; none where there is no tokenizer."""
        dense = self.dense().texts
        if dense is None or verdict.texts is None:
            return []
        return [Sample(*texts) for texts in zip(PROMPTS, dense, verdict.texts, strict=True)]

    def fidelity_protocol(self) -> str | None:
        """How KL and top-1 agreement are measured, in words; None if they are not."""
        found = self.dense().fidelity
        if found is None:
            return None
        length = found.tokens // found.sequences
        return (
            "KL(dense || model) in nats and top-1 agreement per token, mean over "
            f"{found.sequences} windows of {length} tokens of text sampled from the dense model at temperature 1 "
            f"with the seed {SEED}, which no fold uses, {self._loading.words}"
        )
