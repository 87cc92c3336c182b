"""Folding whole checkpoints of every kind, in this process; nothing here needs data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import (
    FAMILIES,
    PREFIX,
    SINGLE,
    edit_json,
    edit_tensors,
    fold,
    logits,
    parameters,
    tensor_hashes,
    tensors,
    tiny_model,
    weight_files,
)

from llmfold.checkpoint import Checkpoint
from llmfold.checkpoint.dtypes import dtype_name
from llmfold.models.tying import running_shape
from llmfold.pipeline import layer_writer
from llmfold.pipeline.verification import TOLERANCES, streamed_logits
from llmfold.runtime.devices import compute_dtype
from llmfold.runtime.prefetch import WriteBehind

IDS = torch.arange(24)[None] % 64
HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (4, 1)}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def config_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return loaded


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_folds_neurons_and_heads_of_every_family(tmp_path: Path, family: str, kind: str, tied: bool) -> None:
    heads, kv_heads = HEADS[kind]
    source = tiny_model(
        tmp_path / "m", family, num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied
    )
    out = tmp_path / "out"
    report = fold(source, mlp_ratio=0.25, attention_ratio=0.5, output=out)
    config = config_of(out)
    assert (config["intermediate_size"], config["num_attention_heads"]) == (36, 2)
    assert config["num_key_value_heads"] == max(kv_heads // 2, 1)
    assert config["architectures"] == [f"{PREFIX[family]}ForCausalLM"]
    assert report.parameters_after == parameters(out) < parameters(source)
    assert report.verification["relative_logit_difference"]["float32"] <= TOLERANCES[torch.float32]
    assert ("lm_head.weight" in tensors(out)) is not tied


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
        ("llama", {"head_dim": 16}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"head_dim": 16, "sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"head_dim": 16}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
@pytest.mark.parametrize("align", ["none", "gauge"])
def test_folds_every_variant(tmp_path: Path, family: str, options: dict[str, Any], align: str) -> None:
    source = tiny_model(tmp_path / "m", family, **options)
    out = tmp_path / "out"
    report = fold(source, mlp_ratio=0.25, attention_ratio=0.5, align=align, output=out)
    assert report.verification["relative_logit_difference"]["float32"] <= TOLERANCES[torch.float32]
    assert config_of(out)["num_attention_heads"] == 2
    assert tensors(out).keys() == tensors(source).keys()


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_keeps_the_dtype_and_writes_shards_as_asked(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    source = tiny_model(tmp_path / "m", dtype=dtype, shards=shards)
    assert (len(weight_files(source)) > 1) is (shards > 1)
    size = 5 * 10**9 if shards == 1 else 20_000
    report = fold(source, ratio=0.2, output=tmp_path / "out", max_shard_size=size)
    found = tensors(tmp_path / "out")
    assert {t.dtype for t in found.values()} == {dtype}
    assert (len(weight_files(tmp_path / "out")) > 1) is (shards > 1)
    assert set(report.verification["relative_logit_difference"]) == {
        "float32",
        dtype_name(compute_dtype("auto", torch.device("cpu"), dtype)),
    }


def test_mixed_dtypes_are_kept_tensor_by_tensor(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", dtype=torch.bfloat16)
    norm = "model.norm.weight"
    edit_tensors(source, lambda t: t.update({norm: t[norm].float()}))
    fold(source, mlp_ratio=0.25, output=tmp_path / "out")
    dtypes = {name: t.dtype for name, t in tensors(tmp_path / "out").items()}
    assert dtypes.pop(norm) == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


def test_dtype_converts_every_tensor_and_the_config_says_so(tmp_path: Path, session_model: Path) -> None:
    out = tmp_path / "out"
    fold(session_model, mlp_ratio=0.25, dtype="bfloat16", output=out)
    assert {t.dtype for t in tensors(out).values()} == {torch.bfloat16}
    assert config_of(out).get("dtype", config_of(out).get("torch_dtype")) == "bfloat16"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_ratio_zero_changes_no_byte_of_any_tensor(tmp_path: Path, family: str, tied: bool) -> None:
    source = tiny_model(tmp_path / "m", family, tie_word_embeddings=tied, dtype=torch.bfloat16, shards=2)
    out = tmp_path / "out"
    fold(source, ratio=0, output=out)
    assert tensor_hashes(out) == tensor_hashes(source)
    assert torch.equal(logits(out, IDS), logits(source, IDS))


def test_the_unfolded_part_is_copied_bit_for_bit(tmp_path: Path, session_model: Path) -> None:
    fold(session_model, mlp_ratio=0.25, output=tmp_path / "out")
    before, after = tensor_hashes(session_model), tensor_hashes(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {n for n in before if ".mlp." in n}


def test_legacy_buffers_are_dropped(tmp_path: Path, model: Path) -> None:
    legacy = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(model, lambda t: t.update({legacy: torch.ones(4)}))
    fold(model, ratio=0.1, output=tmp_path / "out")
    assert legacy not in tensors(tmp_path / "out")


@pytest.mark.parametrize("stored", ["lm_head.weight", "model.embed_tokens.weight", "both"])
def test_tied_embeddings_may_be_stored_under_either_name(tmp_path: Path, stored: str) -> None:
    source = tiny_model(tmp_path / "m", tie_word_embeddings=True)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors.pop("model.embed_tokens.weight")
        names = ["lm_head.weight", "model.embed_tokens.weight"] if stored == "both" else [stored]
        tensors.update({name: embedding.clone() for name in names})

    edit_tensors(source, rename)
    report = fold(source, mlp_ratio=0.25, output=tmp_path / "out")
    assert report.parameters_after == parameters(tmp_path / "out")


def test_a_head_count_that_llama_refuses_is_written_as_mistral(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", num_attention_heads=8, num_key_value_heads=8, head_dim=4, rms_norm_eps=1e-5)
    out = tmp_path / "out"
    report = fold(source, attention_ratio=0.25, output=out)
    config = config_of(out)
    assert (config["model_type"], config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (6, 6, 4)
    assert config["sliding_window"] is None
    assert report.plan["written_as"] == "MistralForCausalLM"
    found = Checkpoint.open(out)
    reference = streamed_logits(found, running_shape(found), IDS)
    torch.testing.assert_close(logits(out, IDS), reference, rtol=1e-4, atol=1e-4)


def test_a_biased_llama_never_becomes_a_mistral(tmp_path: Path) -> None:
    """Mistral would drop the biases silently, so the nearest head count that Llama accepts is taken."""
    source = tiny_model(tmp_path / "m", num_attention_heads=8, num_key_value_heads=8, head_dim=4, attention_bias=True)
    fold(source, attention_ratio=0.25, output=tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["model_type"] == "llama"
    assert config["num_attention_heads"] in (4, 8)


NON_UNIFORM = [
    ("llama", {"0": {"mlp": 0.5}}),
    ("llama", {"0": {"mlp": 0.5}, "1-2": {"attention": 0.5}}),
    ("llama", {"1": {"attention": 0.25}}),
    ("mistral", {"1": {"mlp": 0.25, "attention": 0.25}}),
    ("qwen2", {"1": {"mlp": 0.25, "attention": 0.25}}),
    ("qwen3", {"1": {"mlp": 0.25, "attention": 0.25}}),
]


def four_heads(folder: Path, family: str) -> Path:
    return tiny_model(folder, family, num_key_value_heads=4, num_hidden_layers=3)


@pytest.mark.parametrize(("family", "layers"), NON_UNIFORM)
def test_layers_of_different_widths_carry_their_own_modelling_file(
    tmp_path: Path, family: str, layers: dict[str, dict[str, float]]
) -> None:
    source, out = four_heads(tmp_path / "m", family), tmp_path / "out"
    report = fold(source, layers=layers, output=out)
    assert report.plan["needs_trust_remote_code"]
    assert (out / "modeling_llmfold.py").is_file()
    per_layer = config_of(out)["per_layer_config"]
    assert [per_layer[str(i)]["intermediate_size"] for i in range(3)] == [
        layer["after"]["intermediate"] for layer in report.plan["layers"]
    ]
    found = Checkpoint.open(out)
    reference = streamed_logits(found, running_shape(found), IDS)
    torch.testing.assert_close(logits(out, IDS, remote_code=True), reference, rtol=1e-4, atol=1e-4)


def test_a_folded_model_of_different_widths_folds_again(tmp_path: Path) -> None:
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    fold(four_heads(tmp_path / "m", "llama"), layers={1: {"mlp": 0.5, "attention": 0.5}}, output=first)
    report = fold(first, mlp_ratio=0.25, output=second)
    widths = [layer["after"]["intermediate"] for layer in report.plan["layers"]]
    assert widths == [36, 18, 36]
    assert report.plan["needs_trust_remote_code"]
    even = {"0": {"mlp": 0.5, "attention": 0.5}, "1": {"mlp": 0, "attention": 0}, "2": {"mlp": 0.5, "attention": 0.5}}
    report = fold(second, layers=even, output=third)
    assert not report.plan["needs_trust_remote_code"]
    assert not (third / "modeling_llmfold.py").exists()
    assert not {"per_layer_config", "auto_map", "allow_global_per_layer_attribute_access"} & config_of(third).keys()
    assert logits(third, IDS).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_folds_again(tmp_path: Path, family: str) -> None:
    source = tiny_model(tmp_path / "m", family, num_attention_heads=8, num_key_value_heads=8, head_dim=4)
    fold(source, mlp_ratio=0.25, attention_ratio=0.25, output=tmp_path / "once")
    report = fold(tmp_path / "once", mlp_ratio=0.5, attention_ratio=0.5, output=tmp_path / "twice")
    after = report.plan["layers"][0]["after"]
    assert after == {"intermediate": 18, "heads": 3, "kv_heads": 3}


@pytest.mark.parametrize(
    "options",
    [
        *({"cluster": c, "align": a} for c in ("ward", "kmeans", "hartigan") for a in ("none", "gauge")),
        {"repair": "variance"},
        {"repair": "variance", "align": "gauge"},
    ],
    ids=lambda o: "-".join(o.values()),
)
def test_every_method_option_folds(tmp_path: Path, session_model: Path, options: dict[str, str]) -> None:
    report = fold(session_model, mlp_ratio=0.25, attention_ratio=0.5, output=tmp_path / "out", **options)
    assert {name: report.config[name] for name in options} == options
    for layer in report.layers:
        sizes = layer["mlp"]["cluster_sizes"]
        assert sum(int(size) * count for size, count in sizes.items()) == 48
        assert sum(sizes.values()) == 36


def test_side_files_are_copied_byte_for_byte(tmp_path: Path, model: Path) -> None:
    texts = {
        "tokenizer.json": '{"é": 1}\n\n',
        "tokenizer_config.json": "{ }",
        "special_tokens_map.json": "{}",
        "chat_template.jinja": "{{ messages }}\r\n",
        "generation_config.json": '{"eos_token_id": [1, 2]}',
        "LICENSE": "terms\n",
        "NOTICE": "Built with Llama\n",
        "additional_chat_templates/tool.jinja": "{{ tools }}",
    }
    for name, text in texts.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(text.encode())
    (model / "tokenizer.model").write_bytes(bytes(range(256)))
    (model / "modeling_own.py").write_text("raise SystemExit")
    (model / "optimizer.pt").write_bytes(b"pickle")
    out = tmp_path / "out"
    fold(model, ratio=0.1, output=out)
    for name in [*texts, "tokenizer.model"]:
        assert (out / name).read_bytes() == (model / name).read_bytes(), name
    assert not (out / "modeling_own.py").exists()
    assert not (out / "optimizer.pt").exists()
    fold(model, ratio=0.1, output=out, trust_remote_code=True, overwrite=True)
    assert (out / "modeling_own.py").read_text() == "raise SystemExit"


def test_provenance_names_the_source_without_its_path(tmp_path: Path, model: Path) -> None:
    fold(model, ratio=0.1, output=tmp_path / "out")
    text = (tmp_path / "out" / "llmfold.json").read_text()
    assert json.loads(text)["source"]["name"] == model.name
    assert str(tmp_path) not in text


def test_the_source_is_left_as_it_was(tmp_path: Path, model: Path) -> None:
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in model.iterdir()}
    fold(model, ratio=0.2, output=tmp_path / "out")
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in model.iterdir()} == before


def test_config_of_transformers_4_reads_the_same(tmp_path: Path, model: Path) -> None:
    """Old configs say rope_theta and torch_dtype, new ones rope_parameters and dtype."""
    old = tmp_path / "old"
    shutil.copytree(model, old)
    edit_json(old / "config.json", rope_parameters=None, rope_theta=10000.0, dtype=None, torch_dtype="float32")
    for folder in (model, old):
        fold(folder, mlp_ratio=0.25, output=tmp_path / f"{folder.name}-out")
    new_out, old_out = tmp_path / f"{model.name}-out", tmp_path / "old-out"
    assert tensor_hashes(new_out) == tensor_hashes(old_out)
    for out in (new_out, old_out):
        config = config_of(out)
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
        assert config["rope_scaling"] is None


def test_scaled_rotary_frequencies_are_written_in_both_spellings(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "m", rope_parameters=LLAMA3)
    fold(source, mlp_ratio=0.25, output=tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["rope_parameters"] == LLAMA3
    assert config["rope_theta"] == LLAMA3["rope_theta"]
    assert {**config["rope_scaling"], "rope_theta": LLAMA3["rope_theta"]} == LLAMA3


def test_one_file_stays_one_file(tmp_path: Path, session_model: Path) -> None:
    fold(session_model, ratio=0.2, output=tmp_path / "out")
    assert [path.name for path in weight_files(tmp_path / "out")] == [SINGLE]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_writing_behind_changes_no_byte(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """On the host a layer is copied while the next ratio is merged, on a GPU while the next layer is folded too."""
    if device == "cuda":
        monkeypatch.setattr(layer_writer.LayerWriter, "wait_copied", lambda _: None)
    fold(model, method="paper", ratio=0.2, output=tmp_path / "behind")
    monkeypatch.setattr(layer_writer, "WriteBehind", lambda **_: WriteBehind(enabled=False))
    fold(model, method="paper", ratio=0.2, output=tmp_path / "at-once")
    assert tensor_hashes(tmp_path / "behind") == tensor_hashes(tmp_path / "at-once")
