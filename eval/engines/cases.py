"""The folders of the matrix: models, and each of them folded in every way that writes another kind of checkpoint.

Quality plays no part: folds are made by what is quick and leaves numbers sane, and removes little.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llmfold

Options = Mapping[str, Any]
ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "llmfold" / "demo" / "wiki-llama"
DENSE, SOURCE = "dense", "not touched by llmfold"
FEWER_BLOCKS = "a block removed before"
DTYPES = ("float32", "bfloat16")
_PAPER: Options = {"method": "paper"}
_WANDA: Options = {"method": "wanda-sp", "data": str(ROOT / "README.md"), "num_samples": 8, "sequence_length": 64}
_COMMON = {"hidden_size": 512, "num_hidden_layers": 3, "vocab_size": 4096, "max_position_embeddings": 512}
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_OLDER = {"rope_theta": 50000.0}


@dataclass(frozen=True)
class Model:
    """A model of the matrix.

    Attributes:
        name: of its folders.
        about: what tables say of it.
        method: options of every fold of it.
        random: config of a model with random weights, by transformers' names; None for a real one.
        folds: options by the name of the variant.
        dtypes: of its files.
        reads: whether its tokenizer is one of its family, so that all releases read text by it alike; transformers 5
            reads by its own class of the family, whatever is named.
        pre: what ``--pre`` of ``llmfold export gguf`` is given, None where llama.cpp knows its pre-tokenizer.
        rounding: by dtype, what tolerances are multiplied by where it leaves more than in the other models.
        routed: whether tokens go to experts.
        itself: whether the source, as transformers 5 saves it, is a variant.
    """

    name: str
    about: str
    method: Options = field(default_factory=lambda: _PAPER)
    random: Mapping[str, Any] | None = None
    folds: Mapping[str, Options] = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES
    reads: bool = True
    pre: str | None = "gpt-2"  # what wiki-llama's is, which the random models have too
    rounding: Mapping[str, float] = field(default_factory=dict)
    routed: bool = False
    itself: bool = False


def _share(mlp: float = 0.0, attention: float = 0.0, **layers: Any) -> Options:
    return {"mlp_ratio": mlp, "attention_ratio": attention, **layers}


_ADAPTIVE = _share(0.125, layers={1: {"mlp": 0.25}, 2: {"mlp": 0.375}})
NARROWER, GROUPS, ODD, ADAPTIVE = "narrower MLP", "fewer KV groups", "heads that do not divide", "adaptive widths"

MODELS = (
    Model(
        "smollm2",
        "SmolLM2-135M-Instruct, tied, 9 heads in 3 groups of 64",
        _WANDA,
        pre=None,
        rounding={"float32": 10, "bfloat16": 2},
        folds={NARROWER: _share(1 / 6), GROUPS: _share(0, 1 / 3), ADAPTIVE: _ADAPTIVE},
    ),
    Model(
        "wiki-llama",
        "wiki-llama, tied, 8 heads of 24",
        _WANDA,
        folds={NARROWER: _share(0.25), GROUPS: _share(0, 0.25), ODD: _share(0.25, 0.125), ADAPTIVE: _ADAPTIVE},
    ),
    Model(
        "random-llama",
        "a random Llama, untied, 8 heads of 64",
        random={"model_type": "llama", **_COMMON, **_HEADS, "num_key_value_heads": 8, "intermediate_size": 1024},
        folds={
            NARROWER: _share(0.25),
            GROUPS: _share(0, 0.5),
            ODD: _share(0.25, 0.125),
            ADAPTIVE: _ADAPTIVE,
            FEWER_BLOCKS: _share(0.25),
        },
    ),
    Model(
        "random-qwen2",
        "a random Qwen2 (biases), tied",
        reads=False,
        random={"model_type": "qwen2", **_COMMON, **_HEADS, "intermediate_size": 1024, "tie_word_embeddings": True},
        folds={NARROWER: _share(0.25), GROUPS: _share(0, 0.25)},
    ),
    Model(
        "random-phi3",
        "a random Phi-3 (fused weights), untied",
        itself=True,
        random={"model_type": "phi3", **_COMMON, **_HEADS, "intermediate_size": 1024, **_OLDER},
        folds={NARROWER: _share(0.25), GROUPS: _share(0, 0.5)},
    ),
    Model(
        "random-mixtral",
        "a random Mixtral (experts), untied",
        routed=True,
        random={
            **{"model_type": "mixtral", **_COMMON, **_HEADS, **_OLDER},
            **{"intermediate_size": 512, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        },
        folds={NARROWER: _share(0.25), GROUPS: _share(0, 0.5)},
    ),
)


@dataclass(frozen=True)
class Case:
    """One folder: a model, the variant of it, its dtype."""

    model: Model
    variant: str
    dtype: str
    folder: Path

    @property
    def name(self) -> str:
        """What jobs call it."""
        return f"{self.model.name} | {self.variant} | {self.dtype}"


def cases(work: Path, names: tuple[str, ...] = ()) -> list[Case]:
    """All cases, those of the models that are named; the dense ones first."""
    found = []
    for model in MODELS:
        if names and model.name not in names:
            continue
        place = work / "models" / model.name
        for variant in (DENSE, *model.folds):
            for dtype in model.dtypes:
                found.append(Case(model, variant, dtype, place / f"{variant.replace(' ', '-')}-{dtype}"))
        if model.itself:
            found.append(Case(model, SOURCE, DTYPES[0], place / "source"))
    return found


def build(case: Case, smollm2: Path) -> str | None:
    """Make the folder of a case unless it stands; what went wrong, or None.

    ``dense`` is a fold that removes nothing, so that all folders of a model have small files by the same hand.
    """
    if (case.folder / "config.json").exists():
        return None
    source = _source(case, smollm2)
    if case.variant == SOURCE:
        return None
    options = (
        {**_PAPER, **_share()} if case.variant == DENSE else {**case.model.method, **case.model.folds[case.variant]}
    )
    try:
        llmfold.fold(
            str(source),
            output=str(case.folder),
            dtype=case.dtype,
            fidelity_tokens=0,
            quiet=True,
            **options,
        )
    except llmfold.LlmfoldError as error:
        return str(error)
    return None


def _source(case: Case, smollm2: Path) -> Path:
    """The model that a case is folded from."""
    if case.model.random is None:
        return smollm2 if case.model.name == "smollm2" else DEMO
    fewer = case.variant == FEWER_BLOCKS
    folder = case.folder.parent / ("source-without-a-block" if fewer else "source")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        _write_random(folder, case.model.random, without=1 if fewer else None)
    return folder


def _write_random(folder: Path, config: Mapping[str, Any], *, without: int | None = None) -> None:
    """A random model whose logits are not flat, as ``save_pretrained`` writes it, with the tokenizer of wiki-llama.

    It may lose a block (``without``) first.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            else:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    if without is not None:
        del model.model.layers[without]
        model.config.num_hidden_layers -= 1
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)


def tokenizer_ids(folder: Path, text: str) -> list[int]:
    """Ids of a text by tokenizer.json of a folder."""
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return ids
