"""The reload check: what was written is what was produced, and stock transformers computes the same from it."""

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from llmfold.checkpoint import Checkpoint, is_damage, sha256
from llmfold.checkpoint.blocks import is_finite
from llmfold.checkpoint.dtypes import dtype_name
from llmfold.errors import CheckpointError, VerificationError
from llmfold.methods.base import read_layer
from llmfold.models import EMBEDDING, HEAD, ModelShape, shape_of
from llmfold.models.auto_class import auto_class, from_folder
from llmfold.models.casting import not_finite
from llmfold.models.context import Context
from llmfold.models.family_settings import family_settings
from llmfold.models.refusals import reported
from llmfold.models.stock_shape import StockShape
from llmfold.models.tying import running_shape
from llmfold.pipeline.estimate import CHECKED_IN_MEMORY_BYTES
from llmfold.pipeline.output_tokenizer import check_tokenizer
from llmfold.planning import FoldPlan
from llmfold.runtime.devices import compute_dtype
from llmfold.runtime.distributed import Ranks
from llmfold.runtime.launch import PeerLostError
from llmfold.runtime.quiet import quiet_transformers
from llmfold.runtime.reduction import OrderedReduce
from llmfold.runtime.storage import write_error

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1.5e-1}
"""Allowed :func:`logit_difference`, by the dtype the model runs in."""
PROBE_TOKENS = 16
IN_MEMORY_BYTES = CHECKED_IN_MEMORY_BYTES
_OWN = "llmfold"


class DamagedError(VerificationError):
    """The disk does not hold what was written there; nothing of it is worth resuming."""


def verify(
    folder: Path, plan: FoldPlan, source: Checkpoint, digests: Mapping[str, str], ranks: Ranks
) -> dict[str, Any]:
    """Check the written folder before it is published, each of the processes a share of it.

    ``--verify shapes`` builds the stock model without weights and compares every name and shape, and what the stock
    tokenizers of source and output make of hard texts. ``full`` also reads
    back every tensor, loads the folder strictly with stock transformers, runs a few tokens, and compares the logits
    with the streamed forward pass of the tensors: in float32 arithmetic, and in the run's compute dtype if that is
    another. Models above ``IN_MEMORY_BYTES`` are read layer by layer from disk by both.

    Args:
        folder: the finished work folder.
        plan: the fold it came from; its config says how much to check.
        source: the model that was read, whose config and tokenizer the written ones must agree with.
        digests: SHA-256 of each tensor's bytes by name, taken when it was produced.
        ranks: the processes of the run, all of which call this.

    Returns:
        What was compared, for the report.

    Raises:
        VerificationError: anything differs; the folder must not be published. A :class:`DamagedError` where the files
            themselves are not what was written.
    """
    mode = plan.config.verify
    if mode == "off":
        return {"mode": mode}
    if mode == "full":
        ranks.run_on_all(lambda: read_back(folder, digests, ranks.shard(sorted(digests))))
    ranks.run_on_main(lambda: check_structure(folder, plan, source.config))
    texts = ranks.run_on_main(lambda: check_tokenizer(source.folder, folder))
    if mode == "shapes":
        return {"mode": mode, "tokenizer_texts": texts}
    tokens = probe_tokens(plan.after.vocabulary)
    # The check runs on the host. A half dtype that is emulated there says no more than float32, and takes far longer.
    computed = compute_dtype(plan.config.compute_dtype, torch.device("cpu"), plan.tensors[0].dtype)
    dtypes = {dtype_name(dtype): dtype for dtype in (torch.float32, computed)}
    places = {dtype: _places(plan, dtype) for dtype in dtypes.values()}

    def logits(name: str) -> tuple[Tensor]:
        if name == _OWN:
            with _reading():
                checkpoint = Checkpoint.open(folder)
            return (streamed_logits(checkpoint, running_shape(checkpoint), tokens),)
        return (_stock_logits(folder, tokens, dtypes[name], plan, places[dtypes[name]]),)

    passes = [_OWN, *dtypes]
    computed_here: dict[str, tuple[Tensor]] = {}
    ranks.run_on_all(lambda: computed_here.update({name: logits(name) for name in ranks.shard(passes)}))
    reference, *others = (result for (result,) in OrderedReduce(ranks).map_in_order(passes, computed_here.__getitem__))
    compared = zip(dtypes.items(), others, strict=True)

    def difference(x: Tensor, dtype: torch.dtype) -> float:
        found, left = logit_difference(x, reference, dtype), places[dtype][1:]
        if found <= TOLERANCES[dtype] or not left:
            return found
        return logit_difference(_stock_logits(folder, tokens, dtype, plan, left), reference, dtype)

    differences = ranks.run_on_main(
        lambda: {name: _accept(difference(x, dtype), dtype, folder) for (name, dtype), x in compared}
    )
    return {
        "mode": mode,
        "tensors": len(digests),
        "tokens": tokens.shape[1],
        "tokenizer_texts": texts,
        "relative_logit_difference": differences,
        "tolerance": {name: TOLERANCES[dtype] for name, dtype in dtypes.items()},
    }


def check_structure(folder: Path, plan: FoldPlan, source_config: Mapping[str, Any]) -> None:
    """Compare names, shapes and config with the plan, the stock model and the source.

    Raises:
        VerificationError: they differ.
    """
    with _reading():
        checkpoint = Checkpoint.open(folder)
        shape = shape_of(checkpoint.config)
        shape.check_stored(checkpoint.shapes)
    if not plan.after.architecture.registered:
        return
    if [layer.widths() for layer in shape.layers] != [layer.widths() for layer in plan.after.layers]:
        raise VerificationError("the folded config.json gives other widths than were planned")
    check_stock_shapes(folder, checkpoint, remote_code=plan.needs_remote_code)
    _check_config(checkpoint.config, source_config, plan.after)


@contextmanager
def _reading() -> Iterator[None]:
    """Tell an output that is damaged from one that cannot be read now."""
    try:
        yield
    except CheckpointError as error:
        if is_damage(error):
            raise DamagedError(f"what was written does not read back: {error}") from error
        raise VerificationError(
            f"what was written cannot be read back now ({error}): it is kept, run the same command again"
        ) from error


@contextmanager
def transformers_must(do: str) -> Iterator[None]:
    """Whatever stops transformers, which raises errors of many kinds, would stop a user too."""
    try:
        yield
    except (PeerLostError, VerificationError):
        raise
    except Exception as error:
        raise VerificationError(f"transformers cannot {do}: {' '.join(str(error).split())}") from error


def probe_tokens(vocabulary: int) -> Tensor:
    """(1, PROBE_TOKENS) token ids spread over the vocabulary, the same for every run."""
    return (torch.arange(PROBE_TOKENS) * 7919 + 3)[None] % vocabulary


def check_stock_shapes(folder: Path, checkpoint: Checkpoint, *, remote_code: bool) -> None:
    """Compare names and shapes with the stock model built from the folder's config on the meta device.

    Raises:
        VerificationError: transformers refuses the config, or a parameter differs.
    """
    with transformers_must("build a model from the folded config"), quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
        model = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=remote_code)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    written = checkpoint.shapes
    absent = ({HEAD, EMBEDDING} if config.tie_word_embeddings else set()) - written.keys()
    for name in sorted((expected.keys() | written.keys()) - absent):
        if expected.get(name) != written.get(name):
            raise VerificationError(
                f"tensor {name} was written with shape {written.get(name)} but transformers expects "
                f"{expected.get(name)}"
            )


def _check_config(written: Mapping[str, Any], source: Mapping[str, Any], shape: ModelShape) -> None:
    """Compare all that decides the function beside widths; the logits of a short probe barely see some of it."""
    new, old = (family_settings(config, shape) for config in (written, source))
    same = {
        "rotary frequencies": torch.equal(new.frequencies, old.frequencies) and new.rotary_scale == old.rotary_scale,
        "rms_norm_eps": new.eps == old.eps,
        "hidden_act": type(new.activation) is type(old.activation),
        "sliding window": new.windows == old.windows,
        "tie_word_embeddings": shape_of(written).tied == shape.tied,
    }
    for setting, agrees in same.items():
        if not agrees:
            raise VerificationError(f"{setting}: the folded config.json does not agree with the source's")


def read_back(folder: Path, digests: Mapping[str, str], names: Sequence[str]) -> None:
    """Compare the SHA-256 of tensors on disk with the one taken when they were produced.

    Args:
        folder: the finished work folder.
        digests: SHA-256 of each tensor's bytes by name.
        names: tensors to read.

    Raises:
        DamagedError: the files are not what was written.
        VerificationError: they cannot be read.
    """
    with _reading():
        checkpoint = Checkpoint.open(folder)
        for name in names:
            if sha256(checkpoint.read(name, check_finite=False)) != digests[name]:
                raise DamagedError(f"tensor {name} on disk is not what was produced; the disk may be failing")


def streamed_logits(checkpoint: Checkpoint, shape: StockShape, tokens: Tensor) -> Tensor:
    """Logits by llmfold's streamed forward pass in float32, one layer in memory at a time.

    Args:
        checkpoint: the tensors.
        shape: their shape.
        tokens: (batch, tokens) int64.

    Returns:
        (batch, tokens, vocabulary) float32.
    """
    context, cpu = Context(shape), torch.device("cpu")
    with torch.inference_mode():
        x = torch.cat(list(context.embed(checkpoint, tokens, cpu)))
        for index in range(len(shape.layers)):
            weights = read_layer(checkpoint, shape, index, check_finite=False)
            for role in weights:  # each in the place of what was read, which experts are copied for
                weights[role] = weights[role].float()
            x = context.layer(x, weights, index)
            del weights  # or the next layer would be read while this one is held
        ends = context.ends(checkpoint, cpu)
        return torch.stack([ends.logits(sequence) for sequence in x])


Places = dict[str, str] | str | None
"""Where modules of a stock model are put, as transformers takes it; None for plain memory."""


def _places(plan: FoldPlan, dtype: torch.dtype) -> list[Places]:
    """Where to put the stock model, what takes least memory first.

    Of a large one layers are read from the disk one by one. A few classes look at weights of modules inside them, which
    accelerate has not read by then; they fail, or compute something else, unless they are held in memory. Those of
    registered families do not.
    """
    if plan.after.parameters * dtype.itemsize <= IN_MEMORY_BYTES:
        return [None]
    return [_on_disk(plan.after), *([] if plan.after.architecture.registered else ["auto"])]


def _stock_logits(folder: Path, tokens: Tensor, dtype: torch.dtype, plan: FoldPlan, places: Sequence[Places]) -> Tensor:
    """Logits of stock transformers, loaded strictly, by the first of some placements that it runs with."""
    for each in places[:-1]:
        with suppress(VerificationError):
            return _placed_logits(folder, tokens, dtype, plan, each)
    return _placed_logits(folder, tokens, dtype, plan, places[-1])


def _placed_logits(folder: Path, tokens: Tensor, dtype: torch.dtype, plan: FoldPlan, places: Places) -> Tensor:
    scratch = folder.with_name(f"{folder.name}-offload-{dtype_name(dtype)}")
    placement = {} if places is None else {"device_map": places, "offload_folder": scratch}
    with _scratch(scratch), quiet_transformers():
        with transformers_must("load the folded checkpoint"):
            model, info = from_folder(
                folder, remote_code=plan.needs_remote_code, dtype=dtype, output_loading_info=True, **placement
            )
        complaint = reported(info)
        if complaint:
            raise VerificationError(complaint)
        try:
            with transformers_must("run the folded checkpoint"), torch.inference_mode():
                logits = _logits(model, tokens)
                if not is_finite(logits):
                    reason = not_finite(model, tokens)
                    raise VerificationError(f"{folder} was not published: the folded checkpoint {reason}")
                return logits
        finally:
            del model
            gc.collect()  # the hooks of accelerate and their module hold one another


def _on_disk(shape: ModelShape) -> dict[str, str]:
    """Where modules of a model go that is too large for memory: what is large stays on disk until it is used."""
    assert isinstance(shape, StockShape)
    stock = shape.stock
    layers = (f"{stock.path}.{i}" for i in range(len(shape.layers)))
    places = dict.fromkeys((stock.embedding_path, *layers, stock.head_path), "disk")
    ends = tuple(places)
    unseen = stock.outside.keys() - stock.language
    for name in chain(dict(stock.model.named_modules()), stock.outside):
        if any(f"{name}.".startswith(f"{placed}.") for placed in places) or any(
            f"{end}.".startswith(f"{name}." if name else "") for end in ends
        ):
            continue
        within = {each for each in stock.outside if f"{each}.".startswith(f"{name}.")}
        places[name] = "disk" if within and within <= unseen else "cpu"
    return places


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model.eval()(tokens, use_cache=False).logits
    return logits.float()


def logit_difference(logits: Tensor, reference: Tensor, dtype: torch.dtype) -> float:
    """Root-mean-square difference of (…, tokens, vocabulary) logits over the root mean square of the reference.

    In a half dtype that of the median token: rounding may turn a single one over, where an early layer decides whether
    it becomes a sink of attention, and a tensor that is wrong disturbs them all.
    """
    wrong, size = ((x.square().mean(-1)).flatten() for x in (logits - reference, reference))
    if dtype == torch.float32:
        return float((wrong.mean() / size.mean().clamp_min(1e-30)).sqrt())
    return float((wrong / size.clamp_min(1e-30)).sqrt().median())


def _accept(difference: float, dtype: torch.dtype, folder: Path) -> float:
    """The difference; VerificationError where it is too large."""
    name = dtype_name(dtype)
    if not difference <= TOLERANCES[dtype]:
        raise VerificationError(
            f"reloaded in {name}, the folded checkpoint's logits differ from llmfold's own by {difference:.2g} "
            f"(allowed {TOLERANCES[dtype]:g}); {folder} was not published"
        )
    return difference


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """A folder for the time of a check; what a killed run left in it goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except OSError as error:
        raise write_error(error, folder, 0) from error
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
