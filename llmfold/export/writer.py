"""A checkpoint as one GGUF file, tensor by tensor, which appears at its path whole or not at all."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from llmfold.checkpoint import Checkpoint, free_bytes
from llmfold.checkpoint.locate import locate, public_name
from llmfold.checkpoint.preflight import check_writable
from llmfold.engines.gguf_targets import Target, target_of
from llmfold.errors import OutputError, UsageError
from llmfold.export.encoding import FILE_TYPES, encode, resolved_type, stored_bytes, stored_type
from llmfold.export.options import ExportSettings
from llmfold.export.pre_tokenizer import known_names
from llmfold.export.rotary import Rotary, context_length, rotary_of
from llmfold.export.targets import form_of
from llmfold.export.tensors import Piece, pieces_of
from llmfold.export.vocabulary import Vocabulary, read_vocabulary
from llmfold.models import ModelShape, stock_config
from llmfold.models.tying import stored_shape
from llmfold.runtime.storage import replacing, writing

_MAGIC = b"GGUF"
_HEADER = 16 << 20
"""Bytes kept free for what is not weights: the vocabulary."""
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        architecture: llama.cpp's name for it.
        type: how most weights are stored.
        pre: llama.cpp's name of the pre-tokenizer.
        nbytes: size of the file.
        notes: what a user should know, a sentence each.
    """

    path: Path
    architecture: str
    type: str
    pre: str
    nbytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A model that can be exported, and in what form."""

    name: str
    checkpoint: Checkpoint
    shape: ModelShape
    target: Target
    rotary: Rotary
    context: int
    eps: float
    pieces: list[Piece]
    chosen: int
    """Experts that a token passes, where there are any."""


def export_gguf(settings: ExportSettings, say: Callable[[str], None]) -> Exported:
    """Write a checkpoint as a GGUF file.

    Args:
        settings: what, where to and how.
        say: is told what is being done.

    Raises:
        UsageError: the file is there, or cannot be that of an export.
        CheckpointError: the model or its tokenizer is not one that llama.cpp computes alike.
        OutputError: the file cannot be written.
    """
    logging.getLogger("gguf").setLevel(logging.ERROR)  # it guesses at templates, which the tokenizer itself is asked
    path = Path(settings.output).expanduser()
    _check_output(path, settings.overwrite)
    source = locate(settings.model, settings.revision)
    model = _open(Checkpoint.open(source.folder), public_name(source))
    vocabulary = read_vocabulary(source.folder, model.shape.vocabulary, settings.pre)
    kind = resolved_type(settings.type, model.checkpoint.dtype)
    needed = sum(stored_bytes(piece.shape, piece.type(kind)) for piece in model.pieces)
    missing = needed + _HEADER - free_bytes(path.parent)
    if missing > 0:
        raise OutputError(f"the disk that holds {path.parent} is full: free {missing} bytes, or choose another output")
    say(f"writing {len(model.pieces)} tensors as {kind} for llama.cpp's architecture {model.target.architecture}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, needed), replacing(path) as partial:
        _write(partial, model, vocabulary, kind)
    notes = _notes(model, vocabulary, kind)
    return Exported(path, model.target.architecture, kind, vocabulary.pre, path.stat().st_size, notes)


def _check_output(path: Path, overwrite: bool) -> None:
    """Raise UsageError unless the path is free, or a GGUF file that may be replaced."""
    if path.is_dir():
        raise UsageError(f"the output {path} is a folder: give a file")
    if path.exists():
        if not overwrite:
            raise UsageError(f"the output {path} exists: choose another, or pass --overwrite to replace it")
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise UsageError(f"the output {path} is no GGUF file, so it is not replaced: choose another")
    check_writable(path.parent)


def _open(checkpoint: Checkpoint, name: str) -> _Model:
    """Check everything about a model that config and headers tell, and that its files lie in its folder."""
    checkpoint.side_files()
    shape = stored_shape(checkpoint)
    shape.check_stored(checkpoint.shapes)
    stock = stock_config(checkpoint.config)
    form = form_of(shape, stock, checkpoint.tensors)
    target = target_of(form)
    rotary = rotary_of(form.rope, stock, shape)
    pieces = pieces_of(checkpoint, shape, target)
    context = context_length(stock, shape)
    chosen = int(getattr(stock, "num_experts_per_tok", 0))
    return _Model(name, checkpoint, shape, target, rotary, context, float(stock.rms_norm_eps), pieces, chosen)


def _notes(model: _Model, vocabulary: Vocabulary, kind: str) -> tuple[str, ...]:
    notes = []
    if model.context < model.shape.positions:
        notes.append(
            f"the context is {model.context} tokens, the model's sliding window: llama.cpp attends to everything, "
            "which is the same up to there"
        )
    odd = [piece.shape[-1] for piece in model.pieces if kind == "q8_0" and piece.type(kind).name == "F16"]
    if odd:
        notes.append(
            f"{len(odd)} tensors whose rows (of {max(odd)}) do not divide by 32 are stored as f16: see --multiple-of"
        )
    if vocabulary.pre not in ("default", *known_names()):
        notes.append(f"--pre {vocabulary.pre} is no name that llmfold knows of llama.cpp")
    return tuple(notes)


def _write(path: Path, model: _Model, vocabulary: Vocabulary, kind: str) -> None:
    writer = gguf.GGUFWriter(None, model.target.architecture)
    try:
        _add_model(writer, model, kind)
        _add_vocabulary(writer, vocabulary)
        factors = model.rotary.factors
        if factors is not None:
            _announce(writer, _FREQUENCIES, tuple(factors.shape), stored_type(tuple(factors.shape), "f32"))
        for piece in model.pieces:
            _announce(writer, piece.name, piece.shape, piece.type(kind))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        for piece in model.pieces:
            tensor = piece.read(model.checkpoint)
            writer.write_tensor_data(encode(tensor, piece.type(kind), piece.stored[0]))
    finally:
        writer.close()


def _announce(writer: Any, name: str, shape: tuple[int, ...], stored: Any) -> None:
    """Tell the writer of a tensor that will come, and how it is stored."""
    writer.add_tensor_info(name, shape, None, stored_bytes(shape, stored), raw_dtype=stored)


def _add_model(writer: Any, model: _Model, kind: str) -> None:
    shape = model.shape
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(model.name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(model.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(len(shape.layers))
    writer.add_feed_forward_length(_by_layer([each.intermediate for each in shape.layers], model.target))
    writer.add_head_count(_by_layer([each.heads for each in shape.layers], model.target))
    writer.add_head_count_kv(_by_layer([each.kv_heads for each in shape.layers], model.target))
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(shape.head_dim)
    writer.add_layer_norm_rms_eps(model.eps)
    experts = {piece.shape[0] for piece in model.pieces if len(piece.shape) == 3}
    if experts:
        writer.add_expert_count(*experts)
        writer.add_expert_used_count(model.chosen)
        writer.add_expert_feed_forward_length(shape.layers[0].intermediate)
    _add_rotary(writer, model.rotary)


def _by_layer(widths: list[int], target: Target) -> int | list[int]:
    """A width of every layer where the architecture has one for each, else the one of all."""
    return widths if target.by_layer else widths[0]


def _add_rotary(writer: Any, rotary: Rotary) -> None:
    writer.add_rope_freq_base(rotary.base)
    if rotary.kind is None:
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(rotary.kind))
    adders: Mapping[str, Callable[[Any], None]] = {
        "factor": writer.add_rope_scaling_factor,
        "original": lambda value: writer.add_rope_scaling_orig_ctx_len(math.ceil(value)),
        "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
        "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
    }
    for name, value in rotary.scaling.items():
        adders[name](value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for key, value in vocabulary.settings.items():
        getattr(writer, f"add_{key}")(value)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
