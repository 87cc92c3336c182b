"""Measuring models against one dense model: the same windows of the same text, the same held-back self tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfold.evaluation.defaults import BATCH, FIDELITY_TOKENS
from llmfold.evaluation.fidelity import SEED, Fidelity, Reference, fidelity, held_back_tokens, reference
from llmfold.evaluation.loading import Loading, opened
from llmfold.evaluation.perplexity import Perplexity, Windows, score
from llmfold.evaluation.samples import PROMPTS, Sample, continue_prompts, find_tokenizer


@dataclass(frozen=True)
class Scores:
    """Perplexity on the text, fidelity to the dense model, continued prompts; None where it was not asked for."""

    perplexity: Perplexity | None
    fidelity: Fidelity | None
    continuations: list[str] | None = None


class DenseComparison:
    """Measures the dense model once and any number of models against it."""

    def __init__(
        self,
        dense: Path,
        windows: Windows | None,
        loading: Loading,
        *,
        batch: int = BATCH,
        tokens: int = FIDELITY_TOKENS,
        prompts: bool = False,
        remote_code: bool = False,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Set up without loading anything.

        Args:
            dense: folder of the dense model.
            windows: of the text; None for no perplexity.
            loading: how all models are loaded.
            batch: sequences in one forward pass.
            tokens: about how many to sample from the dense model; 0 for no fidelity.
            prompts: whether models continue prompts, too, by the dense model's tokenizer.
            remote_code: whether the dense model's own modelling file may run.
            notify: told what begins.
        """
        self._folder, self._windows, self._loading = dense, windows, loading
        self._batch, self._tokens, self._notify, self._remote_code = batch, tokens, notify, remote_code
        self._tokenizer = find_tokenizer(dense) if prompts else None
        self._reference: Reference | None = None
        self._dense: Scores | None = None

    def dense(self) -> Scores:
        """Measure the dense model, and keep what the others are compared with."""
        if self._dense is None:
            tokens, exact = None, None
            with opened(self._folder, self._loading, remote_code=self._remote_code) as model:
                if self._tokens:
                    self._notify(f"sampling {self._tokens:,} tokens from the dense model")
                    tokens = held_back_tokens(self._folder, model, tokens=self._tokens)
                self._notify("measuring the dense model")
                perplexity = self._perplexity(model)
                if tokens is not None:
                    self._reference = reference(self._folder, model, tokens, batch=self._batch)
                    exact = Fidelity(0.0, 1.0, tokens.numel(), len(tokens))
                self._dense = Scores(perplexity, exact, self._continuations(model))
        return self._dense

    def measure(self, folder: Path, *, remote_code: bool = False) -> Scores:
        """Measure a model, and the dense one before it if that has not been done."""
        self.dense()
        with opened(folder, self._loading, remote_code=remote_code) as model:
            perplexity = self._perplexity(model)
            close = fidelity(self._reference, model, batch=self._batch) if self._reference else None
            return Scores(perplexity, close, self._continuations(model))

    def _perplexity(self, model: Any) -> Perplexity | None:
        return score(model, self._windows, batch=self._batch) if self._windows else None

    def _continuations(self, model: Any) -> list[str] | None:
        return continue_prompts(model, self._tokenizer) if self._tokenizer else None

    def samples(self, scores: Scores) -> list[Sample]:
        """Prompts as the dense model and the one of ``scores`` continue them; none where there is no tokenizer."""
        dense = self.dense().continuations
        if dense is None or scores.continuations is None:
            return []
        return [Sample(*texts) for texts in zip(PROMPTS, dense, scores.continuations, strict=True)]

    def fidelity_protocol(self) -> str | None:
        """How KL and top-1 agreement are measured, in words; None if they are not."""
        exact = self.dense().fidelity
        if exact is None:
            return None
        length = exact.tokens // exact.sequences
        return (
            "KL(dense || model) in nats and top-1 agreement per token, mean over "
            f"{exact.sequences} windows of {length} tokens of text sampled from the dense model at temperature 1 "
            f"with the seed {SEED}, which no fold uses, {self._loading.words}"
        )
