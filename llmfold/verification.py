"""The reload check: what was written is what was produced, and stock transformers computes the same from it."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmfold.architectures import EMBEDDING, FINAL_NORM, HEAD, ModelShape, check_tensors, tensor_name
from llmfold.checkpoint import Checkpoint, sha256
from llmfold.errors import VerificationError
from llmfold.planning import FoldPlan
from llmfold.streaming.forward import ForwardContext, decoder_layer, forward_context, rms_norm

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Allowed root-mean-square difference of logits over their root mean square, by the dtype the model runs in."""
PROBE_TOKENS = 16
IN_MEMORY_BYTES = 1_000_000_000
"""Below this size the reload check holds the model in memory; above, accelerate reads it layer by layer from disk."""
_VOCABULARY_BLOCK = 16_384


def verify(folder: Path, plan: FoldPlan, digests: Mapping[str, str], mode: str) -> dict[str, Any]:
    """Check the written folder before it is published.

    ``shapes`` builds the stock model without weights and compares every name and shape. ``full`` also reads every
    tensor back and compares its SHA-256 with the one taken when it was produced, loads the folder strictly with stock
    transformers, runs a few tokens, and compares the logits with an independent forward pass of those tensors: in
    float32 arithmetic, and in the stored dtype as users will run it. Models above ``IN_MEMORY_BYTES`` are read layer by
    layer from disk by both.

    Args:
        folder: the finished work folder.
        plan: the fold it came from.
        digests: SHA-256 of each tensor's bytes by name.
        mode: ``full``, ``shapes`` or ``off``.

    Returns:
        What was compared, for the report.

    Raises:
        VerificationError: anything differs; the folder must not be published.
    """
    if mode == "off":
        return {"mode": mode}
    checkpoint = Checkpoint.open(folder)
    check_tensors(plan.after, {t.name: t.shape for t in checkpoint.tensors.values()})
    check_stock_shapes(folder, checkpoint, remote_code=plan.needs_remote_code)
    if mode == "shapes":
        return {"mode": mode}
    _check_digests(checkpoint, digests)
    tokens = probe_tokens(plan.after.vocabulary)
    reference = independent_logits(checkpoint, plan.after, tokens)
    stored = plan.tensors[0].dtype
    differences = {}
    for dtype in dict.fromkeys((torch.float32, stored)):
        logits = _stock_logits(folder, tokens, dtype, plan)
        differences[str(dtype).removeprefix("torch.")] = _compare(logits, reference, dtype, folder)
    return {
        "mode": mode,
        "tensors": len(digests),
        "tokens": tokens.shape[1],
        "relative_logit_difference": differences,
        "tolerance": {str(d).removeprefix("torch."): TOLERANCES[d] for d in dict.fromkeys((torch.float32, stored))},
    }


def probe_tokens(vocabulary: int) -> Tensor:
    """(1, PROBE_TOKENS) token ids spread over the vocabulary, the same for every run."""
    return (torch.arange(PROBE_TOKENS) * 7919 + 3)[None] % vocabulary


def check_stock_shapes(folder: Path, checkpoint: Checkpoint, *, remote_code: bool) -> None:
    """Compare names and shapes with the stock model built from the folder's config on the meta device.

    Raises:
        VerificationError: transformers refuses the config, or a parameter differs.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote_code)
    except Exception as error:  # transformers raises many kinds for a config it cannot build
        reason = " ".join(str(error).split())
        raise VerificationError(f"transformers cannot build a model from the folded config: {reason}") from error
    expected = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    found = {t.name: t.shape for t in checkpoint.tensors.values()}
    tied = {HEAD, EMBEDDING} if config.tie_word_embeddings else set()
    for name in sorted(expected.keys() | found.keys()):
        if name in tied and (name not in found):
            continue
        if expected.get(name) != found.get(name):
            raise VerificationError(
                f"tensor {name} was written with shape {found.get(name)} but transformers expects {expected.get(name)}"
            )


def _check_digests(checkpoint: Checkpoint, digests: Mapping[str, str]) -> None:
    for name in checkpoint.tensors:
        if sha256(checkpoint.read(name, check_finite=False)) != digests.get(name):
            raise VerificationError(f"tensor {name} on disk is not what was produced; the disk may be failing")


def independent_logits(checkpoint: Checkpoint, shape: ModelShape, tokens: Tensor) -> Tensor:
    """Logits by llmfold's own forward pass in float32, one layer in memory at a time.

    Args:
        checkpoint: the tensors.
        shape: their shape.
        tokens: (batch, tokens) int64.

    Returns:
        (batch, tokens, vocabulary) float32.
    """
    context: ForwardContext = forward_context(checkpoint.config, shape)
    embedding = EMBEDDING if EMBEDDING in checkpoint.tensors else HEAD
    head = HEAD if HEAD in checkpoint.tensors and not shape.tied else embedding
    with torch.inference_mode():
        x = F.embedding(tokens, checkpoint.read(embedding, check_finite=False)).float()
        for index, layer in enumerate(shape.layers):
            weights = {
                role: checkpoint.read(tensor_name(index, role), check_finite=False).float()
                for role, _ in shape.layer_roles(layer)
            }
            x = decoder_layer(x, weights, layer, context, index)
        x = rms_norm(x, checkpoint.read(FINAL_NORM, check_finite=False).float(), context.eps)
        blocks = torch.split(checkpoint.read(head, check_finite=False), _VOCABULARY_BLOCK)
        return torch.cat([F.linear(x, block.float()) for block in blocks], dim=-1)


def _stock_logits(folder: Path, tokens: Tensor, dtype: torch.dtype, plan: FoldPlan) -> Tensor:
    """Logits of stock transformers, loaded strictly; from disk layer by layer where the model is large."""
    size = plan.after.parameters * dtype.itemsize
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".llmfold-offload-") as offload, _quiet_transformers():
        placement: dict[str, Any] = {}
        if size > IN_MEMORY_BYTES:
            placement = {"device_map": _disk_map(len(plan.after.layers)), "offload_folder": offload}
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, trust_remote_code=plan.needs_remote_code, **placement
            )
        except Exception as error:  # whatever stops a user from loading it must stop the publication
            reason = " ".join(str(error).split())
            raise VerificationError(f"transformers cannot load the folded checkpoint: {reason}") from error
        for kind, names in info.items():
            if names:
                raise VerificationError(f"transformers reports {kind.replace('_', ' ')}: {sorted(map(str, names))[0]}")
        with torch.inference_mode():
            return _logits(model, tokens)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = model.eval()(tokens, use_cache=False).logits
    return logits.float()


def _disk_map(layers: int) -> dict[str, str]:
    on_disk = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(layers)), "lm_head"]
    return {**dict.fromkeys(on_disk, "disk"), "model.norm": "cpu", "model.rotary_emb": "cpu"}


def _compare(logits: Tensor, reference: Tensor, dtype: torch.dtype, folder: Path) -> float:
    name = str(dtype).removeprefix("torch.")
    if not torch.isfinite(logits).all():
        raise VerificationError(f"the folded checkpoint computes NaN or Inf in {name}; {folder} was not published")
    difference = float((logits - reference).square().mean().sqrt() / reference.square().mean().sqrt().clamp_min(1e-30))
    if not difference <= TOLERANCES[dtype]:
        raise VerificationError(
            f"reloaded in {name}, the folded checkpoint's logits differ from llmfold's own by {difference:.2g} "
            f"(allowed {TOLERANCES[dtype]:g}); {folder} was not published"
        )
    return difference


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep loading bars and offload notices of a check out of the user's terminal."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    accelerate_logger = logging.getLogger("accelerate")
    level = accelerate_logger.level
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    accelerate_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        accelerate_logger.setLevel(level)
        if bars:
            transformers.logging.enable_progress_bar()
