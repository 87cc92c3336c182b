import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from llmfold.checkpoint import Checkpoint, TensorInfo
from llmfold.errors import CheckpointError

from .builders import (
    LAYER,
    NORM,
    one_sentence,
    raw_safetensors,
    read_index,
    sharded,
    single_file,
    weights,
    write_config,
    write_index,
)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert one_sentence(caught.value)
    return str(caught.value)


def test_reads_a_single_file(tmp_path):
    checkpoint = Checkpoint.open(single_file(tmp_path, hidden_size=4))
    assert checkpoint.config == {"model_type": "llama", "hidden_size": 4}
    assert checkpoint.tensors[LAYER] == TensorInfo(LAYER, torch.float32, (3, 4), "model.safetensors")
    for name, tensor in weights().items():
        assert torch.equal(checkpoint.read(name), tensor)


def test_order_is_shards_then_places_in_the_file(tmp_path):
    write_config(tmp_path)
    for name, first, second in (("b.safetensors", "z", "a"), ("a.safetensors", "y", "x")):
        entries = {second: (4, 8), first: (0, 4)}
        header = {key: {"dtype": "F32", "shape": [1], "data_offsets": at} for key, at in entries.items()}
        raw_safetensors(tmp_path / name, header, 8)
    write_index(tmp_path, {"a": "b.safetensors", "x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"})
    assert list(Checkpoint.open(tmp_path).tensors) == ["y", "x", "z", "a"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5, 7)])
def test_every_weight_dtype_and_shape(tmp_path, dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    read = Checkpoint.open(single_file(tmp_path, {"w": tensor})).read("w")
    assert read.dtype == dtype
    assert torch.equal(read, tensor)


def test_a_tied_checkpoint_has_no_head(tmp_path):
    checkpoint = Checkpoint.open(
        single_file(tmp_path, {"model.embed_tokens.weight": torch.ones(4, 2)}, tie_word_embeddings=True)
    )
    assert list(checkpoint.tensors) == ["model.embed_tokens.weight"]


def test_writing_into_a_read_tensor_leaves_the_file_alone(tmp_path):
    checkpoint = Checkpoint.open(single_file(tmp_path))
    before = (tmp_path / "model.safetensors").read_bytes()
    checkpoint.read(LAYER).zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert torch.equal(checkpoint.read(LAYER), weights()[LAYER])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_named(tmp_path, value):
    broken = torch.zeros(3 << 20, dtype=torch.bfloat16)
    broken[-1] = value
    checkpoint = Checkpoint.open(single_file(tmp_path, {"broken": broken, "sound": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"'broken' in .*model.safetensors holds NaN or infinity"):
        checkpoint.read("broken")
    assert checkpoint.read("broken", check_finite=False).shape == (3 << 20,)
    assert checkpoint.read("sound").tolist() == [1, 1]


def test_unknown_tensor(tmp_path):
    with pytest.raises(CheckpointError, match="has no tensor 'nope'"):
        Checkpoint.open(single_file(tmp_path)).read("nope")


@pytest.mark.parametrize("change", ["grow", "touch", "remove"])
def test_a_shard_that_changes_after_opening_is_not_read(tmp_path, change):
    checkpoint = Checkpoint.open(single_file(tmp_path))
    path = tmp_path / "model.safetensors"
    if change == "remove":
        path.unlink()
    elif change == "touch":
        os.utime(path, (1, 1))
    else:
        status = path.stat()
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.read(LAYER)


def test_metadata_is_not_a_tensor(tmp_path):
    folder = single_file(tmp_path)
    assert b"__metadata__" in (folder / "model.safetensors").read_bytes()
    assert set(Checkpoint.open(folder).tensors) == {LAYER, NORM}


def test_legacy_buffers_are_dropped_but_not_real_biases(tmp_path):
    prefix = "model.layers.0.self_attn"
    legacy = {
        f"{prefix}.rotary_emb.inv_freq": torch.ones(2),
        f"{prefix}.rotary_emb.cos_cached": torch.ones(2),
        f"{prefix}.rotary_emb.sin_cached": torch.ones(2),
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "vision_model.embeddings.position_ids": torch.arange(4)[None],
    }
    kept = {**weights(), "h.1.attn.bias": torch.ones(4), f"{prefix}.q_proj.bias": torch.ones(4)}
    checkpoint = Checkpoint.open(single_file(tmp_path, legacy | kept))
    assert set(checkpoint.dropped) == set(legacy)
    assert set(checkpoint.tensors) == set(kept)
    with pytest.raises(CheckpointError, match="has no tensor"):
        checkpoint.read(f"{prefix}.rotary_emb.inv_freq")


class TestConfig:
    def test_missing_folder(self, tmp_path):
        assert "does not exist" in refusal(tmp_path / "nowhere")

    def test_missing_config(self, tmp_path):
        single_file(tmp_path)
        (tmp_path / "config.json").unlink()
        assert "config.json is missing" in refusal(tmp_path)

    @pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 100_000, b"", b'{"a": ' + b"9" * 5000 + b"}"])
    def test_config_that_is_no_json_object(self, tmp_path, text):
        single_file(tmp_path)
        (tmp_path / "config.json").write_bytes(text)
        assert "config.json" in refusal(tmp_path)

    def test_config_of_absurd_size(self, tmp_path):
        single_file(tmp_path)
        os.truncate(tmp_path / "config.json", 100_000_001)
        assert "larger than" in refusal(tmp_path)

    def test_config_that_is_a_folder(self, tmp_path):
        single_file(tmp_path)
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").mkdir()
        assert "not a regular file" in refusal(tmp_path)


class TestUnsuitableWeights:
    def test_no_weights(self, tmp_path):
        assert "a config but no weights" in refusal(write_config(tmp_path))

    @pytest.mark.parametrize(
        "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"]
    )
    def test_pickles(self, tmp_path, name):
        (write_config(tmp_path) / name).write_bytes(b"\x80\x04")
        message = refusal(tmp_path)
        assert name in message
        assert "convert it to safetensors" in message

    def test_quantised_by_config(self, tmp_path):
        message = refusal(single_file(tmp_path, quantization_config={"quant_method": "gptq"}))
        assert "fold it first and quantise after" in message

    @pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "weight_scale", "absmax"])
    def test_quantised_by_name(self, tmp_path, part):
        message = refusal(single_file(tmp_path, {f"model.layers.0.mlp.up_proj.{part}": torch.ones(2)}))
        assert f"up_proj.{part}" in message
        assert "quantise after" in message

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.bool])
    def test_quantised_by_dtype(self, tmp_path, dtype):
        message = refusal(single_file(tmp_path, {LAYER: torch.ones(2, 2).to(dtype)}))
        assert LAYER in message
        assert "quantise after" in message

    def test_integers_but_for_what_a_batch_norm_has_counted(self, tmp_path):
        message = refusal(single_file(tmp_path, {LAYER: torch.ones(2, 2).long()}))
        assert "quantised or not a weight" in message
        counter = "resnet.normalization.num_batches_tracked"
        folder = single_file(tmp_path, {**weights(), counter: torch.tensor(7)})
        checkpoint = Checkpoint.open(folder)
        assert (checkpoint.read(counter).item(), checkpoint.tensors[counter].dtype) == (7, torch.int64)


class TestIndex:
    @pytest.fixture
    def folder(self, tmp_path):
        return sharded(tmp_path / "model", {"a": torch.ones(2)}, {"b": torch.zeros(3), "c": torch.ones(1)})

    def test_reads_across_shards(self, folder):
        checkpoint = Checkpoint.open(folder)
        assert list(checkpoint.tensors) == ["a", "b", "c"]
        assert checkpoint.read("b").tolist() == [0, 0, 0]
        assert checkpoint.tensors["b"].shard == "model-00002-of-00002.safetensors"

    @pytest.mark.parametrize("shard", ["/x.safetensors", "../x.safetensors", "a/b.safetensors", "x.bin", "", ".", 3])
    def test_shard_names_outside_the_folder(self, folder, shard):
        write_index(folder, read_index(folder) | {"a": shard})
        assert "which is not a safetensors file name" in refusal(folder)

    @pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
    def test_index_without_a_map(self, folder, weight_map):
        write_index(folder, weight_map)
        assert "has no weight_map" in refusal(folder)

    def test_index_naming_a_tensor_twice(self, folder):
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace('"a":', '"a": "x.safetensors", "a":'))
        assert "names 'a' twice" in refusal(folder)

    def test_missing_shard(self, folder):
        (folder / "model-00002-of-00002.safetensors").unlink()
        assert "model-00002-of-00002.safetensors is missing" in refusal(folder)

    @pytest.mark.parametrize("shard", ["model-00001-of-00002.safetensors", None])
    def test_shards_say_what_they_hold(self, folder, shard):
        names = {name: place for name, place in read_index(folder).items() if name != "c"}
        write_index(folder, names | {"d": "model-00001-of-00002.safetensors"} | ({"c": shard} if shard else {}))
        checkpoint = Checkpoint.open(folder)
        assert "d" not in checkpoint.tensors
        assert checkpoint.tensors["c"].shard == "model-00002-of-00002.safetensors"

    def test_tensor_in_two_shards(self, tmp_path):
        folder = sharded(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2)})
        assert "tensor 'a' is in both" in refusal(folder)

    def test_stale_single_file_beside_an_index(self, folder):
        single_file(folder)
        assert "remove the stale one" in refusal(folder)

    def test_names_cannot_break_the_sentence(self, folder):
        write_index(folder, read_index(folder) | {"d\n\x1b[31m\ud800": "model.bin"})
        refusal(folder).encode()


class TestLinks:
    def hub_cache(self, root: Path) -> Path:
        plain = single_file(root / "plain")
        (plain / "tokenizer.json").write_text("{}")
        repository = root / "models--owner--name"
        snapshot = repository / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        for number, path in enumerate(sorted(plain.iterdir())):
            shutil.copy(path, repository / "blobs" / str(number))
            (snapshot / path.name).symlink_to(f"../../blobs/{number}")
        return snapshot

    def test_a_hub_cache_snapshot_works(self, tmp_path):
        snapshot = self.hub_cache(tmp_path)
        checkpoint = Checkpoint.open(snapshot)
        assert torch.equal(checkpoint.read(LAYER), weights()[LAYER])
        assert checkpoint.side_files() == [snapshot / "tokenizer.json"]

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_links_out_of_a_snapshot_are_refused(self, tmp_path, name):
        snapshot = self.hub_cache(tmp_path)
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(tmp_path / "plain" / name)
        assert "outside the model folder" in refusal(snapshot)

    @pytest.mark.parametrize("layout", ["models--owner--name/versions", "owner--name/snapshots"])
    def test_blobs_of_another_layout_are_outside(self, tmp_path, layout):
        snapshot = self.hub_cache(tmp_path)
        moved = tmp_path / "moved" / layout
        moved.parent.mkdir(parents=True)
        (snapshot.parent.parent / "blobs").rename(moved.parent / "blobs")
        snapshot.parent.rename(moved)
        assert "outside the model folder" in refusal(moved / snapshot.name)

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_links_out_of_a_plain_folder_are_refused(self, tmp_path, name):
        folder, other = single_file(tmp_path / "a"), single_file(tmp_path / "b")
        (folder / name).unlink()
        (folder / name).symlink_to(other / name)
        assert "outside the model folder" in refusal(folder)

    def test_links_inside_the_folder_and_to_the_folder_work(self, tmp_path):
        folder = single_file(tmp_path / "a")
        (folder / "model.safetensors").rename(folder / "real.safetensors")
        (folder / "model.safetensors").symlink_to("real.safetensors")
        (tmp_path / "link").symlink_to("a")
        assert torch.equal(Checkpoint.open(tmp_path / "link").read(NORM), torch.ones(4))

    def test_link_loop(self, tmp_path):
        folder = single_file(tmp_path)
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to("config.json")
        assert "config.json is missing" in refusal(folder)


class TestFingerprint:
    def test_is_stable(self, tmp_path):
        folder = single_file(tmp_path)
        assert Checkpoint.open(folder).fingerprint() == Checkpoint.open(folder).fingerprint()

    def test_changes_with_the_tokenizer_and_not_with_the_licence(self, tmp_path):
        folder = single_file(tmp_path)
        found = [Checkpoint.open(folder).fingerprint()]
        for name in ("LICENSE", "tokenizer.json", "generation_config.json"):
            (folder / name).write_text("{}")
            found.append(Checkpoint.open(folder).fingerprint())
        assert found[0] == found[1]
        assert len(set(found[1:])) == 3

    @pytest.mark.parametrize("change", ["config", "time", "header", "name"])
    def test_changes_with_the_source(self, tmp_path, change):
        folder = sharded(tmp_path, {"a": torch.ones(2)}, {"b": torch.ones(2)})
        before = Checkpoint.open(folder).fingerprint()
        shard = folder / "model-00001-of-00002.safetensors"
        times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
        if change == "config":
            write_config(folder, rope_theta=1.0)
        elif change == "time":
            os.utime(shard, ns=(times[0], times[1] + 1000))
        elif change == "header":
            shard.write_bytes(shard.read_bytes().replace(b'"a"', b'"z"'))
            os.utime(shard, ns=times)
            write_index(folder, {("z" if name == "a" else name): file for name, file in read_index(folder).items()})
        else:
            shard.rename(folder / "first.safetensors")
            write_index(folder, read_index(folder) | {"a": "first.safetensors"})
        assert Checkpoint.open(folder).fingerprint() != before


@pytest.mark.parametrize("name", ["wiki-llama", "story-llama", "stories260K"])
def test_real_checkpoints(name, data_dir):
    folder = data_dir / "models" / name
    checkpoint = Checkpoint.open(folder)
    config = json.loads((folder / "config.json").read_text())
    assert checkpoint.read("model.norm.weight").shape == (config["hidden_size"],)
    assert sum(info.nbytes for info in checkpoint.tensors.values()) < (folder / "model.safetensors").stat().st_size
