"""Runs that are killed, interrupted, or disturbed: what is left, and what the next run makes of it."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import edit_tensors, file_hashes, fold, forked, forked_program, tiny_model

from llmfold.checkpoint import Journal, ShardWriter, WorkFolder, publish
from llmfold.cli import main
from llmfold.errors import CheckpointError, OutputError, UsageError, VerificationError
from llmfold.methods.reconstruction.fold import Reconstruction
from llmfold.pipeline import run as run_module
from llmfold.pipeline import verification

LAYERS = 4
OPTIONS: dict[str, Any] = {"mlp_ratio": 0.25, "attention_ratio": 0.5, "max_shard_size": 40_000, "cluster": "kmeans"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("resume") / "model", num_hidden_layers=LAYERS, shards=2)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    fold(source, output=out, **OPTIONS)
    return file_hashes(out)


def partial_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.llmfold-partial")


def layers_done(out: Path) -> int:
    journal = partial_of(out) / "journal.jsonl"
    lines = journal.read_text().splitlines()[1:] if journal.exists() else []
    return sum(json.loads(line)["unit"].startswith("layer-") for line in lines)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, which: object, strike: Callable[[], None], *, after: bool = False) -> None:
    """Replace a function so that ``strike`` happens once; only ever used in a fork, or undone.

    It happens at the call whose second argument is ``which``, or, where that is a number, at the call of that number.
    """
    original, calls = getattr(owner, name), 0

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        now = calls == which if isinstance(which, int) else args[1] == which
        if now and not after:
            strike()
        result = original(*args, **kwargs)
        if now and after:
            strike()
        return result

    setattr(owner, name, struck)


def killed_run(source: Path, out: Path, owner: Any, name: str, which: object, after: bool = False) -> None:
    def work() -> None:
        at_call(owner, name, which, die, after=after)
        fold(source, output=out, **OPTIONS)

    assert forked(work) == -signal.SIGKILL


MOMENTS = {
    "before the first shard exists": (ShardWriter, "create", 1, False, 0),
    "while the embeddings are written": (ShardWriter, "write", "model.norm.weight", False, 0),
    "after the first layer is written, before it is journaled": (Journal, "append", "layer-0", False, 0),
    "after the first layer is journaled": (Journal, "append", "layer-0", True, 1),
    "in the middle of the third layer": (ShardWriter, "write", "model.layers.2.mlp.up_proj.weight", False, 2),
    "after the last layer": (Journal, "append", f"layer-{LAYERS - 1}", True, LAYERS),
    "while the config is written": (run_module, "output_config", 1, False, LAYERS),
    "during the reload check": (run_module, "verify", 1, False, LAYERS),
    "in the middle of the reload check": (verification, "_logits", 1, False, LAYERS),
    "after the reload check": (run_module, "verify", 1, True, LAYERS),
    "before it is published": (WorkFolder, "publish", 1, False, LAYERS),
}

BEHIND = ("in the middle of the third layer",)
"""Moments when the thread that waits for the disk may be layers behind."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, source: Path, undisturbed: dict[str, str], moment: str
) -> None:
    owner, name, which, after, done = MOMENTS[moment]
    out = tmp_path / "out"
    killed_run(source, out, owner, name, which, after)
    assert not out.exists()
    found = layers_done(out)
    assert found == done or (found < done and moment in BEHIND)
    report = fold(source, output=out, **OPTIONS)
    assert report.resumed_layers == found
    assert len(report.layers) == LAYERS
    assert file_hashes(out) == undisturbed
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_measured_anew_where_only_the_check_is_left(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"method": "self", "ratio": 0.25, "num_samples": 8, "sequence_length": 12, "refine": 0}
    fold(source, output=tmp_path / "undisturbed", **options)

    def work() -> None:
        at_call(run_module, "verify", 1, die)
        fold(source, output=tmp_path / "out", **options)

    assert forked(work) == -signal.SIGKILL
    for name in ("ready", "measure", "prepare"):
        monkeypatch.setattr(Reconstruction, name, None)
    assert fold(source, output=tmp_path / "out", **options).resumed_layers == LAYERS
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "undisturbed")


def test_killed_between_the_renames_of_publishing(tmp_path: Path, source: Path, undisturbed: dict[str, str]) -> None:
    for number in (1, 2):
        out = tmp_path / f"out{number}"
        killed_run(source, out, os, "rename", number)
        assert not out.exists()
        assert fold(source, output=out, **OPTIONS).resumed_layers == LAYERS
        assert file_hashes(out) == undisturbed
    assert sorted(os.listdir(tmp_path)) == ["out1", "out2"]


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_an_earlier_output_is_replaced(
    tmp_path: Path, source: Path, undisturbed: dict[str, str], after: bool
) -> None:
    out = tmp_path / "out"
    fold(source, output=out, **{**OPTIONS, "mlp_ratio": 0.5})
    earlier = file_hashes(out)

    def work() -> None:
        at_call(publish, "replace_folder", 1, lambda: os.kill(os.getpid(), signal.SIGKILL), after=after)
        fold(source, output=out, overwrite=True, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    assert file_hashes(out) == (undisturbed if after else earlier)
    again = fold(source, output=out, overwrite=True, **OPTIONS)
    assert again.resumed_layers == (0 if after else LAYERS)
    assert file_hashes(out) == undisturbed
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_killed_again_and_again_at_random_moments(tmp_path: Path, source: Path, undisturbed: dict[str, str]) -> None:
    out, draw = tmp_path / "out", random.Random(0)
    started = time.perf_counter()
    fold(source, output=tmp_path / "timed", **OPTIONS)
    usual = time.perf_counter() - started
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                fold(source, output=out, overwrite=True, **OPTIONS)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0.2, 1.0) * usual)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not out.exists() or file_hashes(out) == undisturbed
    fold(source, output=out, overwrite=True, **OPTIONS)
    assert file_hashes(out) == undisturbed


def test_a_killed_overwrite_leaves_the_old_output_whole(
    tmp_path: Path, source: Path, undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "out"
    fold(source, output=out, ratio=0.1)
    old = file_hashes(out)

    def work() -> None:
        at_call(Journal, "append", "layer-1", die)
        fold(source, output=out, overwrite=True, **OPTIONS)

    assert forked(work) == -signal.SIGKILL
    assert file_hashes(out) == old
    report = fold(source, output=out, overwrite=True, **OPTIONS)
    assert report.resumed_layers == 1
    assert file_hashes(out) == undisturbed


@pytest.mark.parametrize("cluster", ["ward", "kmeans", "hartigan"])
def test_two_runs_with_one_seed_give_the_same_bytes(tmp_path: Path, source: Path, cluster: str) -> None:
    options = {"ratio": 0.2, "attention_ratio": 0.5, "align": "gauge", "repair": "variance", "cluster": cluster}
    for name in "ab":
        fold(source, output=tmp_path / name, seed=3, **options)
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")


def test_another_seed_gives_other_kmeans_clusters(tmp_path: Path, source: Path) -> None:
    for seed in (0, 1):
        fold(source, output=tmp_path / str(seed), mlp_ratio=0.5, cluster="kmeans", seed=seed)
    weights = [file_hashes(tmp_path / str(seed))["model.safetensors"] for seed in (0, 1)]
    assert weights[0] != weights[1]


@pytest.fixture
def interrupted(tmp_path: Path, source: Path) -> Path:
    """An output whose run was killed after its second layer."""
    out = tmp_path / "out"
    killed_run(source, out, Journal, "append", "layer-1", after=True)
    assert layers_done(out) == 2
    return out


def test_other_options_against_a_partial_run_are_refused(source: Path, interrupted: Path) -> None:
    with pytest.raises(UsageError, match=r"differs in its config \(mlp_ratio\).*--overwrite"):
        fold(source, output=interrupted, **{**OPTIONS, "mlp_ratio": 0.5})
    assert layers_done(interrupted) == 2


def test_overwrite_discards_a_partial_run_with_other_options(tmp_path: Path, source: Path, interrupted: Path) -> None:
    other = {**OPTIONS, "mlp_ratio": 0.5}
    report = fold(source, output=interrupted, overwrite=True, **other)
    fold(source, output=tmp_path / "fresh", **other)
    assert report.resumed_layers == 0
    assert file_hashes(interrupted) == file_hashes(tmp_path / "fresh")


def test_a_source_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    source, out = tiny_model(tmp_path / "m"), tmp_path / "out"
    killed_run(source, out, Journal, "append", "layer-0", after=True)
    edit_tensors(source, lambda t: t["model.layers.1.mlp.up_proj.weight"].mul_(2))
    with pytest.raises(UsageError, match="differs in its source"):
        fold(source, output=out, **OPTIONS)
    assert not out.exists()


def test_a_source_that_changes_during_the_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tiny_model(tmp_path / "m", num_hidden_layers=4), tmp_path / "space" / "out"
    monkeypatch.setattr(run_module.Run, "confirm_piece", run_module.Run.confirm_piece)
    at_call(run_module.Run, "confirm_piece", 1, lambda: os.utime(source / "model.safetensors", (0, 0)), after=True)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        fold(source, output=out, **OPTIONS)
    assert os.listdir(out.parent) == []


def test_a_partial_run_that_the_disk_damaged_is_done_again(
    source: Path, interrupted: Path, undisturbed: dict[str, str]
) -> None:
    shard = sorted(partial_of(interrupted).glob("*.safetensors"))[0]
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 0x01
    shard.write_bytes(raw)
    with pytest.raises(VerificationError, match="on disk is not what was produced"):
        fold(source, output=interrupted, **OPTIONS)
    assert not interrupted.exists()
    report = fold(source, output=interrupted, **OPTIONS)
    assert report.resumed_layers == 0
    assert file_hashes(interrupted) == undisturbed


def test_the_same_model_by_another_path_resumes(
    tmp_path: Path, source: Path, interrupted: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    report = fold(source.name, output=interrupted, **OPTIONS)
    assert report.resumed_layers == 2
    assert file_hashes(interrupted) == undisturbed


def test_ctrl_c_says_how_to_resume(tmp_path: Path) -> None:
    source, out = tiny_model(tmp_path / "m", num_hidden_layers=LAYERS), tmp_path / "out"
    options = ["--model", str(source), "--ratio", "0.2", "--method", "paper", "--output", str(out), "--quiet"]

    def work() -> int:
        at_call(Journal, "append", "layer-1", lambda: os.kill(os.getpid(), signal.SIGINT), after=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
        return main(options)

    run = forked_program(work)
    assert run.returncode == 130
    assert run.stderr.strip() == "llmfold: interrupted; run the same command again to resume at the last whole layer"
    assert not out.exists()
    assert fold(source, ratio=0.2, output=out).resumed_layers >= 2


def test_a_partial_run_that_lost_a_shard_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def interrupted(self: Journal, unit: str, digests: dict[str, str], record: dict[str, Any]) -> None:
        append(self, unit, digests, record)
        if unit == "layer-0":
            raise KeyboardInterrupt

    model = tiny_model(tmp_path / "m")
    monkeypatch.setattr(Journal, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fold(model, ratio=0.2, output=tmp_path / "out")
    monkeypatch.setattr(Journal, "append", append)
    (tmp_path / ".out.llmfold-partial" / "model.safetensors").unlink()
    with pytest.raises(OutputError, match=r"model\.safetensors of the interrupted run is gone"):
        fold(model, ratio=0.2, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
