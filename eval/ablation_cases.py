"""What ``eval/ablate.py`` tries: cases that differ from a base in one thing each, and the axes that they make."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

METRICS = ("fisher", "fisher-token", "whitened", "head", "readers")


@dataclass(frozen=True)
class Case:
    """One thing that is done to a model; the defaults are the base of all axes.

    Attributes:
        source: of the tokens: ``text``, windows at random places of the calibration text; ``head``, its head; ``own``,
            samples of the model itself.
        tokens, length: how many, and of a sequence.
        temperature, words: of own samples; see :class:`Mixture`.
        separator: token that separates own documents, where not the model's own.
        noise: share of own tokens that are any of the vocabulary instead of what the model would write.
        half: whether only half of the documents, of each beginning, have noise.
        of: what noise is: ``any`` token, ``words`` behind a space, or ``names``, the capitalised of those.
        target: what a block is fitted to: ``alone``, its own output on dense inputs; else a share from 0 to 1 of the
            error of earlier layers that it corrects, on the folded model's inputs.
        closed: whether with such a share the closed form is fitted to it too (``corrected``), or ``alone`` and the
            steps of refinement only correct.
        metric: in which neurons are chosen: ``raw``, or one of ``METRICS``.
        ridge: of the refit; None: held-back rows choose it.
        toward: what the ridge pulls to: ``old`` rows, or ``zero``.
        refine: gradient steps afterwards, of ``batch`` rows, in the metric ``refine_in``.
        joint: gradient steps on all MLPs together that lower KL(dense || folded) of the whole model, each on
            ``JOINT_SEQUENCES``: what fitting every layer alone cannot give. A reference, and no part of llmfold.
        layers: the first layer to narrow and the one after the last; all if None.
        seed: of everything random.
    """

    source: str = "text"
    tokens: int = 32_768
    length: int = 512
    temperature: float = 1.0
    words: float = 0.5
    separator: int | None = None
    noise: float = 0.0
    half: bool = False
    of: str = "any"
    target: str = "alone"
    closed: str = "corrected"
    metric: str = "raw"
    ridge: float | None = None
    toward: str = "old"
    refine: int = 0
    batch: int = 512
    refine_in: str = "raw"
    joint: int = 0
    layers: tuple[int, int] | None = None
    seed: int = 0

    @property
    def given(self) -> dict[str, Any]:
        """What differs from the base."""
        return {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}

    @property
    def name(self) -> str:
        """Name of the case's file."""
        words = [f"{key}-{'-'.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in self.given.items()]
        return "_".join(words) or "base"

    @property
    def sequences(self) -> tuple[Any, ...]:
        """What its tokens depend on."""
        if self.source != "own":
            return self.source, self.tokens, self.length, self.seed
        return (self.tokens, *(getattr(self, name) for name in OF_SAMPLING))


OF_SAMPLING = ("source", "length", "seed", "temperature", "words", "separator", "noise", "half", "of")
PLAIN_OWN = Case(source="own")
OWN = Case(source="own", temperature=0.9, noise=0.03, of="words")
MANY = 131_072


def _each(case: Case, field: str, values: Iterable[Any], **others: Any) -> list[Case]:
    return [dataclasses.replace(case, **{field: value}, **others) for value in values]


AXES: dict[str, list[Case]] = {
    "base": [Case(), PLAIN_OWN, OWN],
    "target": _each(Case(), "target", ("0.0", "0.5", "1.0")) + _each(OWN, "target", ("0.0", "1.0")),
    "selection": _each(Case(), "metric", METRICS) + _each(OWN, "metric", METRICS),
    "tokens": _each(Case(), "tokens", (8192, 16_384, 65_536, MANY))
    + _each(OWN, "tokens", (8192, 16_384, 65_536, MANY)),
    "length": _each(Case(), "length", (256, 1024)) + _each(OWN, "length", (128, 256, 1024)) + [Case(source="head")],
    "ridge": [
        *_each(Case(), "ridge", (0.01, 0.1, 1.0)),
        Case(ridge=1e-3, toward="zero"),
        *_each(OWN, "ridge", (0.1, 1.0)),
        dataclasses.replace(OWN, ridge=1e-3, toward="zero"),
    ],
    "refine": [
        dataclasses.replace(case, tokens=tokens, refine=steps, batch=batch)
        for case, tokens, steps, batch in (
            (OWN, 32_768, 200, 512),
            (OWN, 32_768, 800, 512),
            (OWN, MANY, 200, 512),
            (OWN, MANY, 800, 512),
            (OWN, MANY, 800, 2048),
            (Case(), 32_768, 200, 512),
            (Case(), MANY, 800, 512),
        )
    ],
    "refine_in": _each(OWN, "refine_in", ("raw", "readers", "fisher-token", "fisher"), refine=400, tokens=65_536),
    "joint": [
        dataclasses.replace(case, tokens=MANY, refine=200, joint=steps)
        for case, steps in ((OWN, 200), (OWN, 600), (Case(), 200))
    ],
    "sampling": [
        dataclasses.replace(case, source="own", tokens=65_536)
        for case in (
            *(Case(temperature=value) for value in (1.0, 0.9, 0.8, 0.7, 1.2)),
            *(Case(noise=value, of="words", temperature=0.9) for value in (0.06, 0.1)),
            Case(noise=0.06, of="words", temperature=0.8),
            Case(noise=0.03, of="names", temperature=0.9),
            Case(noise=0.03, of="words", temperature=0.9, words=1.0),
            Case(noise=0.1, half=True, of="words", temperature=0.9),
        )
    ],
    "few": [
        dataclasses.replace(case, source="own", tokens=16_384)
        for case in (
            Case(),
            *(Case(temperature=value) for value in (0.9, 1.2)),
            Case(noise=0.03),
            Case(noise=0.03, of="words", temperature=0.9),
            Case(noise=0.05, half=True, temperature=0.9),
        )
    ],
}


FEW = 16_384
"""Tokens of cases that a processor without an accelerator gets through in ten minutes each."""
for _axis in ("target", "selection", "length", "ridge", "refine"):
    _cases = (dataclasses.replace(case, tokens=FEW) for case in (Case(), OWN, *AXES[_axis]))
    AXES[f"{_axis}_few"] = list(dict.fromkeys(_cases))


BY_LAYER = tuple(dataclasses.replace(case, tokens=tokens) for tokens in (FEW, Case().tokens) for case in (Case(), OWN))
"""Cases whose errors stand on the page layer by layer."""


def parsed(words: str) -> Case:
    """A case as it is typed, such as ``source=own,tokens=65536``."""
    return Case(**{name: yaml.safe_load(value) for name, _, value in (w.partition("=") for w in words.split(","))})
