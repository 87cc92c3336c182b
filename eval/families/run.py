"""Fold a tiny random model of every causal language model of transformers, and of wrappers; say what became of it.

    make families                                           # all types, to eval/results/families.md
    python eval/families/run.py --work W gemma2 mixtral      # these alone, printed

Of every type: at ratio 0 the logits stay equal; planted duplicates of neurons fold without loss; ``paper`` and ``self``
remove a quarter of the decoder; the result loads strictly in its stock class, has the parameters that were planned, and
generates. A line of JSON a type stands in the work folder, and is used again.
"""

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import DECODERS, MODEL_TYPES, UNBUILDABLE, WRAPPERS, tiny_checkpoint

import llmfold
from llmfold.checkpoint import Checkpoint
from llmfold.errors import LlmfoldError, UsageError
from llmfold.models.auto_class import from_folder
from llmfold.models.tying import running_shape

SEED = 0
RATIO = 0.25
EXACT = 1e-4
"""Largest difference of logits, relative to the largest logit, that counts as none but for rounding."""
FOLDS: dict[str, dict[str, Any]] = {
    "paper": {"method": "paper"},
    "self": {"method": "self", "num_samples": 16, "sequence_length": 32, "refine": 2},
}


@dataclass
class Row:
    """What became of a type.

    Attributes:
        type: of the model.
        couplings: what is folded of its layers, in words.
        folded: by method, the fraction of the decoder that went.
        reason: why nothing is folded, or what went wrong.
        wrong: whether it is no reason but a fault.
    """

    type: str
    couplings: str = ""
    folded: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    wrong: bool = False


def couplings_of(folder: Path) -> str:
    """What llmfold folds of a checkpoint's layers, in words."""
    shape = running_shape(Checkpoint.open(folder))
    words = []
    for layer in dict.fromkeys(shape.layers):
        couplings = shape.couplings(layer)
        groups: dict[str, int] = {}
        for coupling in couplings.neurons:
            name = coupling.name.rpartition(".")[0] if coupling.expert is not None else coupling.name
            groups[name] = groups.get(name, 0) + 1
        parts = [name if count == 1 else f"{name} x {count}" for name, count in groups.items()]
        words.append(", ".join(parts + (["heads"] if couplings.heads else [])))
    return "; ".join(dict.fromkeys(word for word in words if word))


def plant(folder: Path) -> None:
    """Make two thirds of every coupling's neurons copies of the others."""
    shape = running_shape(Checkpoint.open(folder))
    tensors = load_file(folder / "model.safetensors")
    for index, layer in enumerate(shape.layers):
        weights = {role: tensor.clone() for role, tensor in shape.unpack(index, tensors.__getitem__).items()}
        for coupling in shape.couplings(layer).neurons:
            copies = torch.arange(coupling.units) % max(1, coupling.units // 3)
            for role, value in coupling.view(weights, layer).items():
                if coupling.slots[role].of_units:
                    repeated = value[:, copies] if role == "down" else value[copies]
                    coupling.slots[role].write(weights[coupling.slots[role].tensor], repeated.clone(), layer)
        tensors.update({name: tensor.contiguous() for name, tensor in shape.pack(index, weights).items()})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def name_beginning(folder: Path) -> None:
    """Have a checkpoint say how a document begins, as published ones do."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["bos_token_id"] = 1
    path.write_text(json.dumps(config), encoding="utf-8")


def logits_of(folder: Path) -> torch.Tensor:
    """Logits of stock transformers on a few tokens."""
    model, loading = from_folder(folder, output_loading_info=True)
    for kind, names in loading.items():
        if names:
            raise ValueError(f"transformers reports {kind}: {sorted(map(str, names))[0]}")
    tokens = (torch.arange(24)[None] * 7 + 5) % 80
    with torch.inference_mode():
        return model.eval()(tokens, use_cache=False).logits  # type: ignore[no-any-return]


def fold(source: Path, output: Path, **options: Any) -> Any:
    """Fold into ``output``, which is made anew."""
    for left in output.parent.glob(f"*{output.name}*"):
        shutil.rmtree(left)
    return llmfold.fold(str(source), output=str(output), seed=SEED, fidelity_tokens=0, quiet=True, **options)


def amount_for(source: Path) -> dict[str, Any]:
    """How much to fold: a quarter of the decoder, or half of the neurons where most of the decoder is kept."""
    amount = {"ratio": RATIO, "ratio_of": "decoder"}
    try:
        llmfold.plan(str(source), method="paper", **amount)
    except UsageError:
        return {"mlp_ratio": 0.5}
    return amount


def check_exact(source: Path, output: Path) -> None:
    """Raise ValueError unless ratio 0 changes nothing, and planted duplicates fold without loss."""
    dense = logits_of(source)
    fold(source, output, method="paper", ratio=0.0)
    if not torch.equal(logits_of(output), dense):
        raise ValueError("the logits change at ratio 0")
    planted = source.with_name(f"{source.name}-planted")
    shutil.copytree(source, planted, dirs_exist_ok=True)
    plant(planted)
    dense = logits_of(planted)
    report = fold(planted, output, method="paper", mlp_ratio=0.5)
    if report.parameters_after == report.parameters_before:
        return  # heads alone are folded
    difference = float((logits_of(output) - dense).abs().max() / dense.abs().max())
    if difference > EXACT:
        raise ValueError(f"planted duplicates fold with a difference of {difference:.1g}")


def check_folded(output: Path, report: Any) -> None:
    """Raise ValueError unless an output has the parameters that were planned, and generates."""
    model = from_folder(output).eval()
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}  # tied ones once
    count = sum(stored.values())
    if count != report.parameters_after:
        raise ValueError(f"{report.parameters_after} parameters were planned, and there are {count}")
    written = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    if not 3 < written.shape[1] <= 7:
        raise ValueError("the output does not generate")


def try_type(model_type: str, work: Path) -> Row:
    """Fold a type in all ways."""
    row, source, output = Row(model_type), work / model_type, work / "output"
    if model_type in UNBUILDABLE:
        row.reason = f"transformers cannot build it here: {UNBUILDABLE[model_type]}"
        return row
    try:
        if not source.exists():
            tiny_checkpoint(model_type, source, SEED)
            name_beginning(source)
        row.couplings = couplings_of(source)
        check_exact(source, output)
        amount = amount_for(source)
        for name, options in FOLDS.items():
            report = fold(source, output, **amount, **options)
            check_folded(output, report)
            row.folded[name] = float(report.plan["decoder_ratio"])
    except LlmfoldError as error:
        row.reason, row.wrong = str(error).replace(str(source), model_type), bool(row.couplings)
    except Exception as error:  # a type that fails must not end the others
        row.reason, row.wrong = f"{type(error).__name__}: {' '.join(str(error).split())}", True
    finally:
        shutil.rmtree(source.with_name(f"{source.name}-planted"), ignore_errors=True)
    return row


def page(rows: list[Row], command: str) -> str:
    """The table as Markdown."""
    wrappers = [row for row in rows if row.type in WRAPPERS]
    rows = [row for row in rows if row.type not in WRAPPERS]
    folded = [row for row in rows if row.folded]
    kept = [row for row in (*rows, *wrappers) if not row.folded]
    decoders = [row for row in rows if row.type in DECODERS]
    lines = [
        "# Every causal language model of transformers",
        "",
        f"`{command}`, seed {SEED}; transformers {version('transformers')}, torch {version('torch')}. Tiny random"
        " models, float32. Folded: at ratio 0 equal logits, planted duplicates of neurons exact, `paper` and `self` at"
        " a quarter of the decoder, strict reload in the stock class, parameters as planned, generates.",
        "",
        f"**{len(folded)} of {len(decoders)} decoders fold** ({len(rows)} types; {len(rows) - len(decoders)} are"
        " encoders, or have one).",
        "",
        "| type | what is folded | paper | self |",
        "|---|---|---:|---:|",
        *map(_line, folded),
        "",
        "Wrappers that see images too, loaded by `AutoModelForImageTextToText`; their language part is folded, all else"
        " is copied.",
        "",
        "| type | what is folded | paper | self |",
        "|---|---|---:|---:|",
        *(_line(row) for row in wrappers if row.folded),
        "",
        "| type | why not |",
        "|---|---|",
        *(f"| {row.type} | {'**fault**: ' if row.wrong else ''}{row.reason} |" for row in kept),
        "",
        *(f"{row.type}: **fault** after some folds: {row.reason}" for row in folded if row.reason),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _line(row: Row) -> str:
    return f"| {row.type} | {row.couplings} | {_percent(row, 'paper')} | {_percent(row, 'self')} |"


def _percent(row: Row, method: str) -> str:
    return f"{row.folded[method]:.1%}" if method in row.folded else ""


def known_rows(path: Path, kind: Callable[..., Any] = Row) -> dict[str, Any]:
    """Rows of an earlier run, of a ``kind``, by type."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["type"]: kind(**row) for row in map(json.loads, lines)}


def main(arguments: list[str] | None = None, tell: Callable[[str], None] = print) -> int:
    """Command line; exit code 1 where a type is at fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all if none is given")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for tiny models, and for what is known of them"
    )
    parser.add_argument("--page", type=Path, help="where the table goes")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "rows.jsonl"
    rows = known_rows(path)
    types = options.types or [name for name in (*MODEL_TYPES, *WRAPPERS) if name not in rows]
    with path.open("a", encoding="utf-8") as lines:
        for name in types:
            rows[name] = try_type(name, options.work)
            lines.write(json.dumps(asdict(rows[name])) + "\n")
            lines.flush()
            shutil.rmtree(options.work / name, ignore_errors=True)
            told = ", ".join(f"{m} {r:.1%}" for m, r in rows[name].folded.items())
            tell(f"{name:28} {told} {rows[name].reason}".rstrip())
    if options.page:
        ordered = [rows[name] for name in sorted(rows)]
        options.page.write_text(page(ordered, "make families"), encoding="utf-8")
    return int(any(rows[name].wrong for name in types))


if __name__ == "__main__":
    sys.exit(main())
