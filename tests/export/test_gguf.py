"""What is written as GGUF, read back by the package that defines the format."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import edit_tensors, fold, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llmfold.cli import main
from llmfold.demo import demo_folder
from llmfold.errors import CheckpointError, UsageError
from llmfold.export.options import ExportSettings

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'llmfold[gguf]'")

from llmfold.export.tensors import interleaved  # noqa: E402
from llmfold.export.writer import export_gguf  # noqa: E402

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]


def speak(folder: Path, **added: Any) -> Path:
    """Give a model of 300 tokens a tokenizer that merges bytes, by rules that llama.cpp does not know."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()])}
    for pair in MERGES:
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **added
    )
    fast.add_tokens(["<tool>"])
    fast.chat_template = "{{ messages }}"
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that speaks, in float32; no test may change it."""
    folder = tmp_path_factory.mktemp("spoken") / "tiny"
    return speak(tiny_model(folder, vocab_size=300, tie_word_embeddings=True))


def export(model: Path, path: Path, **options: Any) -> Any:
    """Export, and read back."""
    export_gguf(ExportSettings(str(model), str(path), **{"pre": "gpt-2", **options}), lambda _: None)
    return gguf.GGUFReader(path)


def value(reader: Any, name: str) -> Any:
    return reader.get_field(name).contents()


def weights(reader: Any) -> dict[str, Any]:
    return {each.name: each for each in reader.tensors}


def dequantised(tensor: Any) -> torch.Tensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).copy())


def test_widths_positions_and_norms_are_those_of_the_config(model: Path, tmp_path: Path) -> None:
    reader = export(model, tmp_path / "m.gguf")
    assert value(reader, "general.architecture") == "llama"
    config = json.loads((model / "config.json").read_text())
    for name, key in {
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.value_length": "head_dim",
        "rope.dimension_count": "head_dim",
        "vocab_size": "vocab_size",
    }.items():
        assert value(reader, f"llama.{name}") == config[key], name
    assert value(reader, "llama.rope.freq_base") == 10000.0
    assert value(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(config["rms_norm_eps"])


def test_rotary_halves_become_neighbours_and_all_else_is_as_it_was(model: Path, tmp_path: Path) -> None:
    from support import tensors

    stored, written = tensors(model), weights(export(model, tmp_path / "m.gguf"))
    assert "output.weight" not in written  # tied: llama.cpp takes the embedding
    assert torch.equal(dequantised(written["token_embd.weight"]), stored["model.embed_tokens.weight"])
    layer = "model.layers.1."
    assert torch.equal(dequantised(written["blk.1.ffn_down.weight"]), stored[f"{layer}mlp.down_proj.weight"])
    assert torch.equal(dequantised(written["blk.1.attn_v.weight"]), stored[f"{layer}self_attn.v_proj.weight"])
    for name, heads in (("q", 4), ("k", 2)):
        rows, ours = stored[f"{layer}self_attn.{name}_proj.weight"], dequantised(written[f"blk.1.attn_{name}.weight"])
        for head in range(heads):
            for i in range(4):
                assert torch.equal(ours[8 * head + 2 * i], rows[8 * head + i])
                assert torch.equal(ours[8 * head + 2 * i + 1], rows[8 * head + 4 + i])


def test_scores_do_not_see_the_reordering() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, x = (torch.randn(shape, generator=generator) for shape in ((6, 16, 5), (6, 16, 5), (5,)))
    plain = [(a @ x).reshape(2, 8) @ (b @ x).reshape(2, 8).T for a, b in zip(q, k, strict=True)]
    turned = [
        (interleaved(a, 2) @ x).reshape(2, 8) @ (interleaved(b, 2) @ x).reshape(2, 8).T
        for a, b in zip(q, k, strict=True)
    ]
    torch.testing.assert_close(torch.stack(turned), torch.stack(plain))


def test_widths_by_layer_are_an_architecture_of_their_own(model: Path, tmp_path: Path) -> None:
    folded = tmp_path / "folded"
    fold(model, layers={"1": {"mlp": 0.5, "attention": 0.5}}, output=str(folded))
    reader = export(folded, tmp_path / "m.gguf")
    assert value(reader, "general.architecture") == "deci"
    assert value(reader, "deci.feed_forward_length") == [48, 24]
    assert value(reader, "deci.attention.head_count") == [4, 2]
    assert value(reader, "deci.attention.head_count_kv") == [2, 1]
    assert list(weights(reader)["blk.1.attn_q.weight"].shape) == [32, 16]


@pytest.mark.parametrize(
    ("family", "options", "architecture"),
    [
        ("qwen2", {}, "qwen2"),
        ("qwen2", {"num_attention_heads": 6, "num_key_value_heads": 3}, "deci"),
        ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 3}, "qwen3"),
        ("mistral", {"num_attention_heads": 3, "num_key_value_heads": 3}, "llama"),
    ],
)
def test_families(family: str, options: dict[str, Any], architecture: str, tmp_path: Path) -> None:
    folder = speak(tiny_model(tmp_path / "tiny", family, vocab_size=300, **options))
    reader = export(folder, tmp_path / "m.gguf")
    assert value(reader, "general.architecture") == architecture
    written = weights(reader)
    assert "output.weight" in written
    assert ("blk.0.attn_q.bias" in written) == (family == "qwen2")
    assert ("blk.0.attn_q_norm.weight" in written) == (family == "qwen3")


def experts(folder: Path, **options: Any) -> Path:
    """A Mixtral that speaks, each token of which passes two of its twelve experts."""
    chosen = {"num_local_experts": 12, "num_experts_per_tok": 2, "sliding_window": None}
    return speak(tiny_model(folder, "Mixtral", vocab_size=300, **chosen, **options))


def test_matrices_of_experts_are_stacked_by_their_numbers(tmp_path: Path) -> None:
    from support import tensors

    folder = experts(tmp_path / "tiny", intermediate_size=64)
    reader = export(folder, tmp_path / "m.gguf", type="q8_0")
    assert value(reader, "general.architecture") == "llama"
    assert value(reader, "llama.expert_count") == 12
    assert value(reader, "llama.expert_used_count") == 2
    assert value(reader, "llama.expert_feed_forward_length") == 64
    stored, written = tensors(folder), weights(reader)
    assert written["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
    for name, ours in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        stack = written[f"blk.1.ffn_{name}_exps.weight"]
        assert stack.tensor_type.name == "Q8_0"
        theirs = [stored[f"model.layers.1.block_sparse_moe.experts.{i}.{ours}.weight"] for i in range(12)]
        torch.testing.assert_close(dequantised(stack), torch.stack(theirs), atol=0.01, rtol=0)


def test_experts_whose_weights_are_not_shares_are_refused(tmp_path: Path) -> None:
    chosen = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    folder = speak(tiny_model(tmp_path / "tiny", "Qwen3Moe", vocab_size=300, norm_topk_prob=False, **chosen))
    with pytest.raises(CheckpointError, match="norm_topk_prob in config"):
        export(folder, tmp_path / "m.gguf")


def test_widths_by_layer_that_no_architecture_holds_are_refused(tmp_path: Path) -> None:
    folder = speak(tiny_model(tmp_path / "tiny", "qwen3", vocab_size=300))
    folded = tmp_path / "folded"
    fold(folder, layers={"1": {"mlp": 0.5}}, output=str(folded))
    with pytest.raises(CheckpointError, match="qwen3 takes one width for all layers"):
        export(folded, tmp_path / "m.gguf")


def test_frequencies_of_llama_3_are_divided_by_factors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    folder = speak(tiny_model(tmp_path / "tiny", vocab_size=300, rope_parameters=rope))
    factors = dequantised(weights(export(folder, tmp_path / "m.gguf"))["rope_freqs.weight"])
    waves = 2 * torch.pi * 500000.0 ** (torch.arange(0, 8, 2) / 8)
    # Shorter waves than 64 / 4 stay as they are, longer ones than 64 / 1 are eight times as long.
    assert waves[0] < 16 < waves[1]
    assert factors[0] == 1.0
    torch.testing.assert_close(factors[waves > 64], torch.full_like(factors[waves > 64], 8.0))


def test_a_window_bounds_the_context(tmp_path: Path) -> None:
    folder = speak(tiny_model(tmp_path / "tiny", "mistral", vocab_size=300, sliding_window=32))
    settings = ExportSettings(str(folder), str(tmp_path / "m.gguf"), pre="gpt-2")
    done = export_gguf(settings, lambda _: None)
    assert value(gguf.GGUFReader(done.path), "llama.context_length") == 32
    assert "sliding window" in done.notes[0]


def test_positions_that_llama_cpp_computes_otherwise_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = speak(tiny_model(tmp_path / "tiny", vocab_size=300, rope_parameters=rope))
    with pytest.raises(CheckpointError, match="rope_type 'dynamic'"):
        export(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize(("kind", "step"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 254 + 2**-11)])
def test_weights_are_rounded_as_the_type_rounds(model: Path, tmp_path: Path, kind: str, step: float) -> None:
    from support import tensors

    written = weights(export(model, tmp_path / "m.gguf", type=kind))
    stored = tensors(model)["model.layers.0.mlp.gate_proj.weight"]
    ours = dequantised(written["blk.0.ffn_gate.weight"])
    largest = stored.abs().amax(-1, keepdim=True) if kind == "q8_0" else stored.abs()
    assert ((ours - stored).abs() <= 1.01 * step * largest + 1e-7).all()
    assert not torch.equal(ours, stored)
    assert written["blk.0.ffn_gate.weight"].tensor_type.name == kind.upper()
    assert written["blk.0.attn_norm.weight"].tensor_type.name == "F32"


def test_rows_that_do_not_divide_are_half_precision(model: Path, tmp_path: Path) -> None:
    settings = ExportSettings(str(model), str(tmp_path / "m.gguf"), type="q8_0", pre="gpt-2")
    done = export_gguf(settings, lambda _: None)
    written = weights(gguf.GGUFReader(done.path))
    assert written["blk.0.ffn_down.weight"].tensor_type.name == "F16"  # rows of 48
    assert written["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"  # rows of 32
    assert "2 tensors whose rows (of 48) do not divide by 32" in done.notes[0]


def test_many_blocks_of_rows_are_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmfold.export import encoding

    rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    kind = encoding.stored_type((7, 32), "q8_0")
    whole = encoding.encode(rows, kind, "t")
    monkeypatch.setattr(encoding, "_AT_ONCE", 64)
    np.testing.assert_array_equal(encoding.encode(rows, kind, "t"), whole)


def test_auto_keeps_what_is_stored(tmp_path: Path) -> None:
    folder = speak(tiny_model(tmp_path / "tiny", vocab_size=300, dtype=torch.bfloat16))
    assert weights(export(folder, tmp_path / "m.gguf"))["blk.0.ffn_up.weight"].tensor_type.name == "BF16"


def test_weights_too_large_for_half_precision_are_refused(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    shutil.copytree(model, folder)
    edit_tensors(folder, lambda stored: stored["model.layers.0.mlp.up_proj.weight"].__setitem__((0, 0), 1e5))
    with pytest.raises(CheckpointError, match=r"mlp.up_proj.weight' holds weights that float16 cannot"):
        export(folder, tmp_path / "m.gguf", type="f16")
    assert list(tmp_path.glob("*.gguf*")) == []


def test_tokens_kinds_merges_and_special_ids(model: Path, tmp_path: Path) -> None:
    reader = export(model, tmp_path / "m.gguf")
    names, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert (value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre")) == ("gpt2", "gpt-2")
    assert value(reader, "tokenizer.ggml.merges") == ["h e", "l l", "he ll", "hell o"]
    assert len(names) == len(kinds) == 300
    kind = dict(zip(names, kinds, strict=True))
    assert (kind["<s>"], kind["hello"], kind["<tool>"], kind["[PAD299]"]) == (3, 1, 4, 5)
    assert names.index("<tool>") == 263
    assert value(reader, "tokenizer.ggml.bos_token_id") == 1
    assert value(reader, "tokenizer.ggml.eos_token_id") == 2
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    assert value(reader, "tokenizer.ggml.add_eos_token") is False
    assert value(reader, "tokenizer.chat_template") == "{{ messages }}"


def test_pieces_of_text_are_scored_by_their_merges(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    shutil.copytree(model, folder)
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"helo"]
    vocabulary = {token: i for i, token in enumerate([*letters, *("".join(pair) for pair in MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    with pytest.raises(UsageError, match="--pre is for merges of bytes"):
        export(folder, tmp_path / "m.gguf")
    reader = export(folder, tmp_path / "m.gguf", pre=None)
    names, scores, kinds = (value(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
    assert value(reader, "tokenizer.ggml.model") == "llama"
    assert value(reader, "tokenizer.ggml.add_space_prefix") is True
    ranked = sorted(("he", "ll", "hell", "hello", "h"), key=lambda token: -scores[names.index(token)])
    assert ranked == ["he", "ll", "hell", "hello", "h"]
    assert [kinds[names.index(token)] for token in ("<unk>", "<s>", "<0x0A>", "hello")] == [2, 3, 6, 1]


def test_an_unknown_pre_tokenizer_is_refused_with_the_name_that_it_has(model: Path, tmp_path: Path) -> None:
    for folder in (model, demo_folder()):
        with pytest.raises(CheckpointError, match=r"pass --pre NAME.*rules are those of --pre gpt-2"):
            export(folder, tmp_path / "m.gguf", pre=None)


def test_rules_that_are_spelled_out_have_names() -> None:
    from llmfold.export.pre_tokenizer import known_names, name_of_rules

    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert name_of_rules(bytes_alone) == "gpt-2"
    assert name_of_rules({"type": "Sequence", "pretokenizers": [digits, bytes_alone]}) == "smollm"
    assert name_of_rules({"type": "Whitespace"}) is None
    assert name_of_rules(None) is None
    assert {"gpt-2", "smollm", "llama-bpe", "qwen2"} <= set(known_names())


def test_a_tokenizer_of_another_kind_is_refused(reader: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of the kind WordLevel: only byte-level"):
        export(reader, tmp_path / "m.gguf")


def test_a_template_that_lies_elsewhere_is_not_read(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "linked"))
    (tmp_path / "secret").write_text("mine")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        export(folder, tmp_path / "m.gguf")


def test_a_file_is_replaced_when_told_and_only_if_it_is_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.gguf"
    words = ["export", "gguf", "--model", str(model), "--output", str(path), "--pre", "gpt-2"]
    assert main(words) == 0
    assert f"llama-cli -m {path}" in capsys.readouterr().out
    first = path.read_bytes()
    assert main(words) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--quiet"]) == 0
    assert path.read_bytes() == first
    path.write_text("notes of mine")
    assert main([*words, "--overwrite"]) == 2
    assert "is no GGUF file" in capsys.readouterr().err
    assert path.read_text() == "notes of mine"
    assert [each.name for each in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--output", "m.bin"], "whose name ends in .gguf"),
        (["--output", "m.gguf", "--type", "q4"], "invalid choice"),
        ([], "--output"),
    ],
)
def test_usage(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "gguf", "--model", "demo", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_without_the_package_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    for name in [name for name in sys.modules if name.startswith("llmfold.export.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["export", "gguf", "--model", "demo", "--output", str(tmp_path / "m.gguf")]) == 1
    assert "pip install 'llmfold[gguf]'" in capsys.readouterr().err
