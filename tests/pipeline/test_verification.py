"""The reload check refuses whatever is not what llmfold produced."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from stock_models import tiny_stock
from support import FAMILIES, edit_json, edit_tensors, fold, tiny_model

from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError, VerificationError
from llmfold.models.context import Context
from llmfold.pipeline import run as run_module
from llmfold.pipeline import verification

OPTIONS: dict[str, Any] = {"mlp_ratio": 0.25, "attention_ratio": 0.5}
Tamper = Callable[[Path], None]


def fold_tampered(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, tamper: Tamper, **options: Any) -> None:
    """Fold, with ``tamper`` at work between the last write and the check."""

    def tampered(folder: Path, *args: Any) -> Any:
        tamper(folder)
        return verification.verify(folder, *args)

    monkeypatch.setattr(run_module, "verify", tampered)
    fold(source, output=out, **{**OPTIONS, **options})


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 0x01
    path.write_bytes(raw)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 20_000)


def config(**fields: Any) -> Tamper:
    return lambda folder: edit_json(folder / "config.json", **fields)


def rope(theta: float) -> Tamper:
    return config(rope_theta=theta, rope_parameters={"rope_type": "default", "rope_theta": theta})


TAMPERINGS: dict[str, Tamper] = {
    "a flipped bit": flip_a_byte,
    "a truncated file": truncate,
    "a missing tensor": lambda f: edit_tensors(f, lambda t: t.pop("model.norm.weight")),
    "a NaN": lambda f: edit_tensors(f, lambda t: t["model.norm.weight"].fill_(float("nan"))),
    "swapped tensors": lambda f: edit_tensors(
        f, lambda t: t.update({"model.norm.weight": t["model.layers.0.input_layernorm.weight"].clone()})
    ),
    "rope_theta": rope(20000.0),
    "rms_norm_eps": config(rms_norm_eps=1e-5),
    "head count": config(num_attention_heads=4, head_dim=4),
    "KV heads": config(num_key_value_heads=2),
    "head_dim": config(head_dim=16),
    "MLP width": config(intermediate_size=48),
    "layers": config(num_hidden_layers=1),
    "tie flag": config(tie_word_embeddings=True),
    "activation": config(hidden_act="gelu"),
    "bias": config(attention_bias=True),
    "vocabulary": config(vocab_size=63),
    "family": config(model_type="qwen3", architectures=["Qwen3ForCausalLM"]),
    "unknown family": config(model_type="gpt_nothing"),
    "no config": lambda f: (f / "config.json").unlink(),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampered_output_is_not_published(
    tmp_path: Path, space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch, tampering: str
) -> None:
    with pytest.raises(VerificationError) as caught:
        fold_tampered(monkeypatch, session_model, space / "out", TAMPERINGS[tampering])
    assert "\n" not in str(caught.value)
    assert not (space / "out").exists()


@pytest.mark.parametrize(
    "cause", [OSError("stale file handle"), RuntimeError("unable to mmap"), SafetensorError("broken")]
)
def test_an_output_is_kept_where_it_cannot_be_read_and_not_where_it_is_damaged(
    space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    def unreadable(self: Checkpoint, name: str, **options: Any) -> torch.Tensor:
        raise CheckpointError(f"tensor {name!r} cannot be read: {cause}") from cause

    with monkeypatch.context() as patch, pytest.raises(VerificationError, match="read back") as caught:
        fold_tampered(patch, session_model, space / "out", lambda _: patch.setattr(Checkpoint, "read", unreadable))
    kept = not isinstance(cause, SafetensorError)
    assert ("run the same command again" in str(caught.value)) is kept
    assert bool(os.listdir(space)) is kept
    resumed = fold(session_model, output=space / "out", **OPTIONS).resumed_layers
    assert bool(resumed) is kept


def test_a_flag_that_unties_the_head_is_found(tmp_path: Path, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    with pytest.raises(VerificationError):
        fold_tampered(monkeypatch, source, space / "out", config(tie_word_embeddings=False))
    assert not (space / "out").exists()


@pytest.mark.parametrize("tampering", ["rope_theta", "rms_norm_eps", "MLP width", "head count", "a missing tensor"])
def test_shapes_only_still_finds_wrong_configs(
    space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch, tampering: str
) -> None:
    with pytest.raises(VerificationError):
        fold_tampered(monkeypatch, session_model, space / "out", TAMPERINGS[tampering], verify="shapes")


def test_switched_off_it_publishes_anything(space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold_tampered(monkeypatch, session_model, space / "out", flip_a_byte, verify="off")
    report = json.loads((space / "out" / "report.json").read_text())
    assert report["verification"] == {"mode": "off"}


@pytest.mark.parametrize("mode", ["full", "shapes", "off"])
def test_the_report_says_what_was_checked(space: Path, session_model: Path, mode: str) -> None:
    report = fold(session_model, output=space / "out", verify=mode, **OPTIONS)
    assert report.verification["mode"] == mode
    assert ("relative_logit_difference" in report.verification) is (mode == "full")
    assert "check" in report.seconds


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_large_models_are_checked_from_disk(
    tmp_path: Path, space: Path, monkeypatch: pytest.MonkeyPatch, family: str, tied: bool
) -> None:
    source = tiny_model(tmp_path / "m", family, dtype=torch.bfloat16, shards=3, tie_word_embeddings=tied)
    in_memory = fold(source, output=space / "memory", **OPTIONS).verification
    monkeypatch.setattr(verification, "IN_MEMORY_BYTES", 0)
    from_disk = fold(source, output=space / "disk", max_shard_size=20_000, **OPTIONS).verification
    assert from_disk == in_memory
    assert sorted(os.listdir(space)) == ["disk", "memory"]


@pytest.mark.parametrize("family", ["mixtral", "llama4_text"])
def test_large_models_of_any_family_are_checked_from_disk(
    tmp_path: Path, space: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Llama 4 asks its embedding where it is before accelerate has read it: it is held in memory."""
    tiny_stock(family).model.save_pretrained(tmp_path / "m")
    options = {"method": "paper", "mlp_ratio": 0.3}
    in_memory = fold(tmp_path / "m", output=space / "memory", **options).verification
    tried: list[verification.Places] = []

    def spied(*arguments: Any) -> torch.Tensor:
        tried.append(arguments[-1])
        return placed(*arguments)

    placed = verification._placed_logits
    monkeypatch.setattr(verification, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(verification, "_placed_logits", spied)
    assert fold(tmp_path / "m", output=space / "disk", **options).verification == in_memory
    ends = {"model.embed_tokens": "disk", "model.layers.0": "disk", "model.layers.1": "disk", "lm_head": "disk"}
    assert tried[0] == {**ends, "model.norm": "cpu", "model.rotary_emb": "cpu"}
    assert tried[1:] == ([] if family == "mixtral" else ["auto"])


def test_logits_that_differ_only_from_disk_are_computed_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongCat's router takes the weight of a module inside it, and goes on without one."""
    tiny_stock("mixtral").model.save_pretrained(tmp_path / "m")
    placed = verification._placed_logits

    def wrong_from_disk(*arguments: Any) -> torch.Tensor:
        return placed(*arguments) * (1 if arguments[-1] == "auto" else 2)

    monkeypatch.setattr(verification, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(verification, "_placed_logits", wrong_from_disk)
    report = fold(tmp_path / "m", output=tmp_path / "out", method="paper", mlp_ratio=0.3)
    assert report.verification["relative_logit_difference"]["float32"] < 1e-4


@pytest.mark.parametrize("tampering", ["a flipped bit", "rope_theta", "head count"])
def test_large_models_are_refused_alike(
    space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch, tampering: str
) -> None:
    monkeypatch.setattr(verification, "IN_MEMORY_BYTES", 0)
    with pytest.raises(VerificationError):
        fold_tampered(monkeypatch, session_model, space / "out", TAMPERINGS[tampering])


def wrong_logits(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    original = verification._logits
    monkeypatch.setattr(verification, "_logits", lambda model, tokens: change(original(model, tokens)))


@pytest.mark.parametrize("limit", [0, 10**9], ids=["from disk", "in memory"])
def test_logits_that_differ_or_are_nan_refuse_to_publish(
    space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(verification, "IN_MEMORY_BYTES", limit)
    wrong_logits(monkeypatch, lambda x: x * 1.001)
    with pytest.raises(VerificationError, match=r"logits differ from llmfold's own by 0\.001 \(allowed 0\.0001\)"):
        fold(session_model, output=space / "out", **OPTIONS)
    wrong_logits(monkeypatch, lambda x: x * float("nan"))
    with pytest.raises(VerificationError, match="NaN or infinity"):
        fold(session_model, output=space / "out", **OPTIONS)
    assert not (space / "out").exists()


def test_a_model_that_loads_but_does_not_run_is_refused(
    space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: object, tokens: object) -> torch.Tensor:
        raise RuntimeError("shapes\ncannot be multiplied")

    monkeypatch.setattr(verification, "_logits", broken)
    with pytest.raises(VerificationError, match="cannot run the folded checkpoint: shapes cannot be multiplied"):
        fold(session_model, output=space / "out", **OPTIONS)


def test_a_streamed_pass_that_is_wrong_is_noticed(
    space: Path, session_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison has two sides: a mistake of llmfold's own does not pass either."""
    monkeypatch.setattr(Context, "layer", lambda self, x, *_: x)
    with pytest.raises(VerificationError, match="logits differ"):
        fold(session_model, output=space / "out", **OPTIONS)


def test_probe_tokens_are_in_the_vocabulary() -> None:
    for vocabulary in (1, 2, 50, 128_256):
        tokens = verification.probe_tokens(vocabulary)
        assert tokens.shape == (1, verification.PROBE_TOKENS)
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary


@pytest.mark.parametrize("native", [False, True], ids=["emulated", "native"])
def test_a_half_dtype_is_run_only_where_the_processor_multiplies_it(
    tmp_path: Path, space: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr("llmfold.runtime.devices.multiplies_bfloat16", lambda: native)
    source = tiny_model(tmp_path / "m", dtype=torch.bfloat16)
    found = fold(source, output=space / "out", **OPTIONS).verification
    assert list(found["relative_logit_difference"]) == ["float32", *["bfloat16"] * native]
    assert found["tolerance"].keys() == found["relative_logit_difference"].keys()


def test_float32_is_run_whatever_the_compute_dtype(space: Path, session_model: Path) -> None:
    found = fold(session_model, output=space / "out", compute_dtype="bfloat16", **OPTIONS).verification
    assert list(found["relative_logit_difference"]) == ["float32", "bfloat16"]


def test_rounding_may_turn_one_token_over_and_a_wrong_tensor_turns_most() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(1, 16, 50, generator=generator)
    rounded = reference + 0.02 * torch.randn(1, 16, 50, generator=generator)
    rounded[0, 1] = torch.randn(50, generator=generator)
    differences = [verification.logit_difference(rounded, reference, t) for t in (torch.bfloat16, torch.float32)]
    assert differences[0] < 0.03 < 0.3 < differences[1]
    wrong = torch.randn(1, 16, 50, generator=generator)
    wrong[0, :4] = reference[0, :4]
    assert verification.logit_difference(wrong, reference, torch.bfloat16) > 1
    nothing = torch.zeros(1, 16, 50)
    assert verification.logit_difference(nothing, nothing, torch.bfloat16) == 0
