"""Bad input, through the command line: one sentence on standard error, the right exit code, nothing written."""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import INDEX, SINGLE, edit_json, edit_tensors, fold, tiny_model, weight_files

from llmfold.checkpoint import Journal
from llmfold.cli import main
from llmfold.pipeline import run as run_module

Cli = Callable[..., tuple[int, str, str]]
UP = "model.layers.1.mlp.up_proj.weight"


def refused(run: tuple[int, str, str], code: int, *words: str) -> None:
    """Check that a run ended with ``code`` and one sentence that says all of ``words``."""
    found, _, stderr = run
    assert found == code, stderr
    assert stderr.startswith("llmfold: ")
    assert stderr.count("\n") == 1, stderr
    assert "unexpected" not in stderr
    for word in words:
        assert word in stderr


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **fields)


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def only_pickles(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 10)


def corrupt_header(folder: Path) -> None:
    raw = bytearray((folder / SINGLE).read_bytes())
    raw[20:40] = b"\xff" * 20
    (folder / SINGLE).write_bytes(raw)


def absurd_header(folder: Path) -> None:
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(struct.pack("<Q", 1 << 60) + raw[8:])


def poisoned(value: float) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda t: t[UP][3].fill_(value))


def tensor(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value

    return lambda folder: edit_tensors(folder, change)


SOURCES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no config": (remove("config.json"), ("config.json is missing",)),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{") and None, ("config.json is not valid JSON",)),
    "not a causal LM": (config(architectures=["LlamaForSequenceClassification"]), ("not a causal language model",)),
    "unsupported family": (
        config(model_type="gpt9"),
        ("'gpt9'", "not known to the transformers installed", "install a newer one"),
    ),
    "another family": (config(model_type="gpt_neox"), ("is not part of GPTNeoXForCausalLM",)),
    "encoder": (config(model_type="bert"), ("'bert'", "encoder", "folds decoders")),
    "nothing to fold": (config(model_type="mamba"), ("nothing to fold", "MambaForCausalLM")),
    "no family": (config(model_type=None), ("no model_type", "download it again")),
    "no weights": (remove(SINGLE), ("no weights",)),
    "pickles": (only_pickles, ("pickled", "convert", "safetensors")),
    "quantised config": (config(quantization_config={"quant_method": "gptq"}), ("quantised", "fold it first")),
    "quantised tensor": (tensor(UP, torch.zeros(48, 32, dtype=torch.int8)), ("quantised", UP)),
    "truncated": (truncated, (SINGLE, "truncated")),
    "corrupt header": (corrupt_header, (SINGLE, "damaged")),
    "absurd header": (absurd_header, (SINGLE, "truncated or not a safetensors file")),
    "empty file": (lambda f: os.truncate(f / SINGLE, 0), (SINGLE,)),
    "missing tensor": (tensor(UP, None), (UP, "missing")),
    "wrong shape": (tensor(UP, torch.zeros(47, 32)), (UP, "[47, 32]", "[48, 32]")),
    "unknown tensor": (tensor("model.adapter.weight", torch.zeros(3)), ("model.adapter.weight",)),
    "NaN": (poisoned(float("nan")), (UP, "NaN")),
    "Inf": (poisoned(float("-inf")), (UP, "infinity")),
    "config of another width": (config(intermediate_size=52), ("[52, 32]",)),
    "heads that do not group": (config(num_key_value_heads=3), ("config.json",)),
    "weights are a folder": (lambda f: (f / SINGLE).unlink() or (f / SINGLE).mkdir(), (SINGLE,)),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_bad_model_is_refused_with_nothing_written(llmfold: Cli, model: Path, space: Path, case: str) -> None:
    spoil, words = SOURCES[case]
    spoil(model)
    refused(llmfold("--model", model, "--ratio", 0.2, "--method", "paper", "--output", space / "out"), 1, *words)
    assert os.listdir(space) == []


def drop_a_shard(folder: Path) -> None:
    weight_files(folder)[1].unlink()


def rename_in_index(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        edit_json(folder / INDEX, weight_map={**weight_map, UP: name})

    return change


def link_a_shard(folder: Path) -> None:
    outside = folder.parent / "private.safetensors"
    weight_files(folder)[0].rename(outside)
    (folder / f"model-00001-of-{len(weight_files(folder)) + 1:05d}.safetensors").symlink_to(outside)


SHARDS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing": (drop_a_shard, ("is missing",)),
    "truncated": (lambda f: os.truncate(weight_files(f)[1], 1000), ("truncated",)),
    "outside by name": (rename_in_index("../../private.safetensors"), ("../../private.safetensors",)),
    "outside by link": (link_a_shard, ("outside the model folder",)),
    "absolute": (rename_in_index("/etc/passwd"), ("/etc/passwd",)),
    "index is not JSON": (lambda f: ((f / INDEX).write_text("") and None) or None, (INDEX,)),
}


@pytest.mark.parametrize("case", SHARDS)
def test_bad_shards_are_refused_with_nothing_written(llmfold: Cli, tmp_path: Path, space: Path, case: str) -> None:
    source = tiny_model(tmp_path / "m", shards=3)
    spoil, words = SHARDS[case]
    spoil(source)
    refused(llmfold("--model", source, "--ratio", 0.2, "--method", "paper", "--output", space / "out"), 1, *words)
    assert os.listdir(space) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./not-here", "does not exist"),
        ("/not/here/either", "does not exist"),
        ("some-org/not-downloaded", "hub cannot be reached"),
        ("not a name!", "neither a folder nor a valid hub name"),
        ("x" * 300, ""),
        ("", ""),
    ],
)
def test_a_model_that_is_not_there(llmfold: Cli, space: Path, name: str, words: str) -> None:
    for command in ("fold", "plan"):
        run = llmfold(command, "--model", name, "--ratio", 0.2, "--method", "paper", "--output", space / "out")
        refused(run, 1, words)
    assert os.listdir(space) == []


def test_a_file_is_not_a_model(llmfold: Cli, model: Path) -> None:
    refused(llmfold("--model", model / SINGLE, "--ratio", 0.2), 1, "is a file")


def test_the_output_may_not_lie_in_the_model_folder(llmfold: Cli, model: Path) -> None:
    before = sorted(os.listdir(model))
    for out in (model / "out", model, model.parent):
        refused(llmfold("--model", model, "--ratio", 0.2, "--method", "paper", "--output", out), 2)
    assert sorted(os.listdir(model)) == before


def test_an_output_that_exists_is_kept(llmfold: Cli, model: Path, space: Path) -> None:
    out = space / "out"
    arguments = ("--model", model, "--ratio", 0.2, "--method", "paper", "--quiet", "--output", out)
    assert llmfold(*arguments) == (0, "", "")
    stamp = (out / "report.json").stat().st_mtime_ns
    refused(llmfold(*arguments), 2, "exists", "--overwrite")
    assert (out / "report.json").stat().st_mtime_ns == stamp
    assert llmfold(*arguments, "--overwrite") == (0, "", "")
    assert (out / "report.json").stat().st_mtime_ns != stamp
    assert os.listdir(space) == ["out"]


def test_a_folder_that_llmfold_did_not_make_is_never_replaced(llmfold: Cli, model: Path, space: Path) -> None:
    (space / "out").mkdir()
    (space / "out" / "thesis.txt").write_text("mine")
    run = llmfold("--model", model, "--ratio", 0.2, "--method", "paper", "--output", space / "out", "--overwrite")
    refused(run, 2, "not made by llmfold")
    assert os.listdir(space / "out") == ["thesis.txt"]


def test_an_output_that_is_a_file(llmfold: Cli, model: Path, space: Path) -> None:
    (space / "out").write_text("")
    refused(llmfold("--model", model, "--ratio", 0.2, "--output", space / "out"), 2, "is a file")
    refused(llmfold("--model", model, "--ratio", 0.2, "--output", space / "out" / "deeper"), 2, "is a file")


def test_an_output_that_cannot_be_written(llmfold: Cli, model: Path) -> None:
    """Even root cannot make a folder in /proc."""
    refused(llmfold("--model", model, "--ratio", 0.2, "--method", "paper", "--output", "/proc/llmfold-out"), 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system to fill")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_for_the_weights_is_told_before_the_work(llmfold: Cli, model: Path, small_disk: Path) -> None:
    run = llmfold("--model", model, "--ratio", 0.1, "--method", "paper", "--output", small_disk / "out")
    refused(run, 1, "full", "free")
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_on_small_files(llmfold: Cli, model: Path, small_disk: Path) -> None:
    (model / "tokenizer.json").write_bytes(bytes(40_000))
    run = llmfold("--model", model, "--ratio", 0.4, "--method", "paper", "--output", small_disk / "out")
    refused(run, 1, "full")
    assert not (small_disk / "out").exists()


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["weights", "side files", "report"])
def test_a_disk_that_fills_up_is_a_sentence_and_the_run_resumes(
    llmfold: Cli, model: Path, space: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    arguments = ("--model", model, "--ratio", 0.2, "--method", "paper", "--quiet", "--output", space / "out")
    with monkeypatch.context() as patch:
        if where == "weights":
            from llmfold.checkpoint import writer

            real, calls = writer.pwrite_all, iter(range(10**6))
            patch.setattr(writer, "pwrite_all", lambda *a: no_space() if next(calls) == 14 else real(*a))
        elif where == "side files":
            patch.setattr(run_module, "output_config", no_space)
        else:
            patch.setattr("llmfold.api.save_report", no_space)
        refused(llmfold(*arguments), 1, "full", "run the same command again")
    assert not (space / "out").exists()
    assert llmfold(*arguments) == (0, "", "")
    assert os.listdir(space) == ["out"]
    resumed = json.loads((space / "out" / "report.json").read_text())["resumed_layers"]
    assert resumed < 2 if where == "weights" else resumed == 2


def test_weights_that_overflow_the_asked_dtype_are_not_written(llmfold: Cli, model: Path, space: Path) -> None:
    edit_tensors(model, lambda t: t[UP].mul_(1e6))
    run = llmfold(
        *("--model", model, "--ratio", 0, "--method", "paper", "--dtype", "float16", "--output", space / "out")
    )
    refused(run, 1, UP, "overflows float16", "--dtype bfloat16")
    assert not (space / "out").exists()


RATIOS = {
    "negative": ("-0.1", "must lie in [0, 1)"),
    "one": ("1", "must lie in [0, 1)"),
    "percent": ("20", "must lie in [0, 1)"),
    "nan": ("nan", "must lie in [0, 1)"),
    "inf": ("inf", "must lie in [0, 1)"),
    "word": ("much", "'much'"),
}


@pytest.mark.parametrize("case", RATIOS)
@pytest.mark.parametrize("option", ["--ratio", "--mlp-ratio", "--attention-ratio"])
def test_a_ratio_outside_its_range(llmfold: Cli, session_model: Path, space: Path, option: str, case: str) -> None:
    value, words = RATIOS[case]
    refused(llmfold("--model", session_model, f"{option}={value}", "--output", space / "out"), 2, option, words)
    assert os.listdir(space) == []


@pytest.mark.parametrize("base", ["model", "decoder"])
@pytest.mark.parametrize("extra", [(), ("--attention-ratio", 0.25)], ids=["", "attention"])
def test_a_ratio_out_of_reach_names_the_largest_and_that_one_works(
    llmfold: Cli, session_model: Path, space: Path, base: str, extra: tuple[object, ...]
) -> None:
    common = ("--model", session_model, "--ratio-of", base, "--method", "paper", "--output", space / "out", *extra)
    run = llmfold(*common, "--ratio", 0.97)
    refused(run, 2, "--ratio 0.97 cannot be met: the largest that can")
    largest = run[2].split(" is ")[1].split()[0]
    assert os.listdir(space) == []
    code, _, stderr = llmfold(*common, "--ratio", largest, "--quiet")
    assert (code, stderr) == (0, "")


def test_other_options_against_a_partial_run_exit_with_two(
    llmfold: Cli, model: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "verify", interrupt)
        arguments = ("--model", model, "--method", "paper", "--output", space / "out", "--quiet")
        code, _, stderr = llmfold(*arguments, "--ratio", 0.2)
    assert code == 130
    assert "resume" in stderr
    refused(llmfold(*arguments, "--ratio", 0.3), 2, "differs in its config (ratio)", "--overwrite")
    assert llmfold(*arguments, "--ratio", 0.3, "--overwrite") == (0, "", "")


def test_two_runs_at_once_on_one_output(
    llmfold: Cli, model: Path, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second, started while the first works, is turned away."""
    arguments = ("--model", model, "--ratio", 0.2, "--method", "paper", "--output", space / "out", "--quiet")
    codes = []
    original = Journal.append

    def meanwhile(self: Journal, *rest: Any) -> None:
        if not codes:
            codes.append(main([str(a) for a in arguments]))
        original(self, *rest)

    monkeypatch.setattr(Journal, "append", meanwhile)
    code, _, stderr = llmfold(*arguments)
    assert (code, codes) == (0, [1])
    assert "another llmfold run is writing" in stderr


def test_debug_shows_the_traceback(llmfold: Cli, model: Path, space: Path) -> None:
    (model / "config.json").unlink()
    arguments = ("--model", model, "--ratio", 0.2, "--output", space / "out")
    assert "Traceback" not in llmfold(*arguments)[2]
    code, _, stderr = llmfold(*arguments, "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in stderr
    assert "CheckpointError" in stderr


def test_nothing_of_a_failed_run_stays_behind(model: Path, space: Path) -> None:
    """The parents that were missing are the only trace."""
    edit_tensors(model, lambda t: t[UP].fill_(float("nan")))
    with pytest.raises(Exception, match="NaN"):
        fold(model, ratio=0.2, output=space / "a" / "b" / "out")
    assert [str(p.relative_to(space)) for p in sorted(space.rglob("*"))] == ["a", "a/b"]
