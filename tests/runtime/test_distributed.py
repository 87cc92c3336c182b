"""Several processes on one fold, launched by torchrun as people do: the same bytes as one, and what a death leaves.

Most of them are forks of the test's own process, which meet as torchrun's do and start in no time.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import file_hashes, fold, tiny_model

from llmfold.checkpoint import Journal
from llmfold.cli import main
from llmfold.errors import LlmfoldError, OutputError, UsageError
from llmfold.pipeline import engine, verification
from llmfold.pipeline.verification import DamagedError
from llmfold.runtime.distributed import Ranks, join_ranks
from llmfold.runtime.launch import AbortedByMainError, is_main, local_world_size, should_report, world_size
from llmfold.runtime.reduction import OrderedReduce
from llmfold.runtime.timing import mean_seconds

from .launching import Ended, launch, launch_forks

LAYERS = 5
OPTIONS: dict[str, Any] = {"fidelity_tokens": 0, "mlp_ratio": 0.25, "attention_ratio": 0.5, "max_shard_size": "40KB"}
Patch = Callable[[], None]


def dies_after(unit: str) -> Patch:
    """The process that journals ``unit`` is killed."""

    def patch() -> None:
        append = Journal.append

        def struck(self: Journal, done: str, *rest: Any) -> None:
            append(self, done, *rest)
            if done == unit:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.append = struck  # type: ignore[method-assign]

    return patch


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("ranks") / "model", num_hidden_layers=LAYERS, shards=2)


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("alone") / "out"
    fold(source, output=out, **OPTIONS)
    return file_hashes(out)


def words(source: Path, out: Path, options: dict[str, Any] | None = None) -> list[str]:
    options = {"method": "paper", **OPTIONS} if options is None else options
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return ["--model", str(source), "--output", str(out), *named]


def two(source: Path, out: Path, options: dict[str, Any] | None = None, patch: Patch | None = None) -> Ended:
    """Two processes by :func:`launch_forks`, which do what ``patch`` makes of the program."""

    def work() -> int:
        if patch is not None:
            patch()
        return main(words(source, out, options))

    return launch_forks(2, work, out.parent)


def sentences(done: Ended) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("llmfold: ")]


def test_two_processes_write_the_bytes_of_one(tmp_path: Path, source: Path, alone: dict[str, str]) -> None:
    done = launch(2, "-m", "llmfold", *words(source, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "out") == alone
    assert done.stdout.count("loads as") == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["machine"]["processes"] == 2
    assert len(report["layers"]) == LAYERS


def stopped_and_resumed(done: Ended, source: Path, out: Path, alone: dict[str, str]) -> None:
    assert done.returncode == 1
    told = sentences(done)
    assert len(told) == 1, done.stderr
    assert "run the same command again to resume" in told[0]
    assert not out.exists()
    report = fold(source, output=out, **OPTIONS)
    assert report.resumed_layers >= 1
    assert file_hashes(out) == alone


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_a_sentence_and_one_process_resumes(
    tmp_path: Path, source: Path, alone: dict[str, str], rank: int
) -> None:
    out = tmp_path / "out"
    stopped_and_resumed(two(source, out, patch=dies_after(f"layer-{rank}")), source, out, alone)


DYING = """
import os, signal, sys
from llmfold.checkpoint import Journal
from llmfold.cli import main

append = Journal.append

def struck(self, unit, *rest):
    append(self, unit, *rest)
    if unit == "layer-0":
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = struck
sys.exit(main())
"""


@pytest.mark.slow
def test_a_process_killed_under_torchrun_ends_the_run_with_a_sentence(
    tmp_path: Path, source: Path, alone: dict[str, str]
) -> None:
    program, out = tmp_path / "dying.py", tmp_path / "out"
    program.write_text(DYING)
    stopped_and_resumed(launch(2, str(program), *words(source, out)), source, out, alone)


MEASURED: dict[str, Any] = {"fidelity_tokens": 0, "ratio": 0.25, "ratio_of": "decoder"}
ON_TOKENS: dict[str, Any] = {"num_samples": 40, "sequence_length": 12, "refine": 2}


ON_MEMBERS: dict[str, Any] = {"effort": "quick"}


@pytest.mark.parametrize(
    "options",
    [
        {"method": "self", **ON_TOKENS},
        {"method": "self", **ON_TOKENS, "depth": 1},
        {"method": "self", **ON_TOKENS, "depth": "auto"},
        {"method": "self", **ON_TOKENS, "allocation": "adaptive"},
        {"method": "weights", **ON_MEMBERS},
    ],
    ids=lambda o: "-".join(str(o[name]) for name in ("method", "depth", "allocation") if name in o),
)
def test_two_processes_that_measure_together_write_the_bytes_of_one(
    tmp_path: Path, source: Path, options: dict[str, Any]
) -> None:
    report = fold(source, output=tmp_path / "alone", **MEASURED, **options)
    done = two(source, tmp_path / "out", {**MEASURED, **options})
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "alone")
    together = json.loads((tmp_path / "out" / "report.json").read_text())
    assert together["machine"]["processes"] == 2
    assert together["seconds"].keys() == report.seconds.keys()


@pytest.mark.parametrize("depth", ["off", 1])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_killed_while_all_measure_ends_the_run_and_any_number_resumes(
    tmp_path: Path, source: Path, processes: int, depth: int | str
) -> None:
    options = {"method": "self", **MEASURED, **ON_TOKENS, "depth": depth}
    out = tmp_path / "out"
    done = two(source, out, options, dies_after("layer-1"))
    assert done.returncode == 1
    assert ["resume" in told for told in sentences(done)] == [True], done.stderr
    assert not out.exists()
    resumed = two(source, out, options) if processes == 2 else None
    if resumed is None:
        fold(source, output=out, **options)
    else:
        assert resumed.returncode == 0, resumed.stderr
    assert json.loads((out / "report.json").read_text())["resumed_layers"] >= 2
    fold(source, output=tmp_path / "alone", **options)
    assert file_hashes(out) == file_hashes(tmp_path / "alone")


def share_blocks() -> int:
    ranks = join_ranks()
    team, computed = OrderedReduce(ranks), []

    def compute(block: int) -> tuple[torch.Tensor, torch.Tensor]:
        computed.append(block)
        return torch.tensor([block, 10.0 * block]), torch.full((block % 3, 2), block, dtype=torch.int64)

    for blocks in ([], [5], list(range(7)), list(range(3, 12))):
        computed.clear()
        found = list(team.map_in_order(blocks, compute))
        assert [float(pair[0]) for pair, _ in found] == blocks
        assert all(
            rest.shape == (b % 3, 2) and bool((rest == b).all()) for b, (_, rest) in zip(blocks, found, strict=True)
        )
        assert computed == blocks[ranks.rank :: 3]
        acted: list[int] = []
        team.each(blocks, acted.append)
        assert acted == computed
    assert team.create_or_open(lambda first: first) == (ranks.rank == 0)
    print("agreed", flush=True)
    return 0


def share_results_and_failures() -> int:
    ranks = join_ranks()
    assert ranks.run_on_all(lambda: 10 * ranks.rank) == [0, 10, 20]

    def fail() -> None:
        if ranks.rank == 1:
            raise DamagedError("tensor a is lost")
        if ranks.rank == 2:
            raise OutputError("never told")

    with pytest.raises(DamagedError if ranks.is_main else AbortedByMainError) as heard:
        ranks.run_on_all(fail)
    assert str(heard.value) == "tensor a is lost"
    assert heard.value.exit_code == DamagedError.exit_code
    print("agreed", flush=True)
    return 0


def test_three_processes_share_blocks_results_and_failures(tmp_path: Path) -> None:
    done = launch_forks(3, lambda: share_blocks() or share_results_and_failures(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreed") == 6


def spoils_a_tensor() -> None:
    verification.IN_MEMORY_BYTES = 0
    compare = verification.read_back

    def struck(folder: Path, digests: dict[str, str], names: Any) -> None:
        if os.environ["RANK"] == "1":
            digests = {**digests, names[0]: "0" * 64}
        compare(folder, digests, names)

    verification.read_back = struck


def spoils_logits() -> None:
    verification.IN_MEMORY_BYTES = 0
    original = verification._logits
    verification._logits = lambda model, tokens: original(model, tokens) * (2 if os.environ["RANK"] == "1" else 1)


SIGNALLING = """
import os, signal, sys, time
from pathlib import Path
from llmfold.pipeline import verification
from llmfold.cli import main

verification.IN_MEMORY_BYTES = 0

def sleep(model, tokens):
    there = Path(os.environ["BOTH_THERE"])
    if os.environ["RANK"] == "0":
        there.touch()
    else:
        while not there.exists():
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)

verification._logits = sleep
sys.exit(main())
"""
CHECKED = {"method": "paper", "dtype": "bfloat16", "compute_dtype": "bfloat16", **OPTIONS}
"""Both processes have a pass by transformers to do."""


def stopped_in_the_check(done: Ended, out: Path, said: str, *, kept: bool) -> None:
    assert done.returncode != 0
    assert len(sentences(done)) == 1, done.stderr
    assert said in sentences(done)[0]
    assert "transformers cannot" not in sentences(done)[0]
    assert not out.exists()
    assert out.with_name(".out.llmfold-partial").exists() is kept
    assert not list(out.parent.glob("*-offload-*"))


@pytest.mark.parametrize(
    ("patch", "said", "kept"),
    [(spoils_a_tensor, "is not what was produced", False), (spoils_logits, "logits differ", True)],
)
def test_what_happens_to_one_process_in_the_check_stops_the_publication(
    tmp_path: Path, source: Path, patch: Patch, said: str, kept: bool
) -> None:
    done = two(source, tmp_path / "out", CHECKED, patch)
    stopped_in_the_check(done, tmp_path / "out", said, kept=kept)


@pytest.mark.slow
def test_a_launcher_told_to_end_in_the_check_stops_the_publication(tmp_path: Path, source: Path) -> None:
    program, there = tmp_path / "signalling.py", str(tmp_path / "there")
    program.write_text(SIGNALLING)
    done = launch(2, str(program), *words(source, tmp_path / "out", CHECKED), BOTH_THERE=there)
    stopped_in_the_check(done, tmp_path / "out", "resume", kept=True)


def test_a_refusal_is_told_once(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    done = two(source, tmp_path / "out")
    assert done.returncode == 1
    assert len(sentences(done)) == 1, done.stderr
    assert "exists" in sentences(done)[0]


def test_units_are_dealt_out_whole_and_once() -> None:
    units = list(range(11))
    dealt = [list(Ranks(rank, 3).shard(units)) for rank in range(3)]
    assert sorted(unit for part in dealt for unit in part) == units
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert Ranks().shard(units) == units


def test_alone_nothing_is_shared() -> None:
    assert Ranks().run_on_all(lambda: 3) == [3]
    assert (world_size(), local_world_size(), is_main()) == (1, 1, True)
    assert Ranks().run_on_main(lambda: 3) == Ranks().run_main_first(lambda: 3) == 3
    assert Ranks().gather("x") == ["x"]
    assert should_report(LlmfoldError("x"))
    assert not should_report(AbortedByMainError("x", 2))


def test_a_launcher_is_told_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world_size() == 1
    for name, value in {"RANK": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), local_world_size(), is_main()) == (4, 2, False)
    assert not should_report(UsageError("the same everywhere"))
    assert should_report(OutputError("here only"))


def test_journals_of_other_ranks_are_absorbed(tmp_path: Path) -> None:
    head = {"a": 1}
    for name, unit in (("journal-1", "layer-1"), ("journal-2", "layer-0")):
        with Journal.open(tmp_path / f"{name}.jsonl", head) as other:
            other.append(unit, {unit: "00"}, {})
    Journal.open(tmp_path / "journal-3.jsonl", {"a": 2}).close()
    with Journal.open(tmp_path / "journal.jsonl", head) as journal:
        journal.append("layer-0", {"own": "11"}, {})
        assert journal.units_beside() == {"layer-0", "layer-1"}
        journal.absorb()
        assert journal.done.keys() == {"layer-0", "layer-1"}
        assert journal.done["layer-0"].digests == {"own": "11"}
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_journal_that_a_process_still_writes_is_not_absorbed(tmp_path: Path) -> None:
    with (
        Journal.open(tmp_path / "journal.jsonl", {}) as journal,
        Journal.open(tmp_path / "journal-1.jsonl", {}, lock=True),
        pytest.raises(OutputError, match="still writes into"),
    ):
        journal.absorb()


def test_seconds_of_processes_are_averaged() -> None:
    assert mean_seconds([{"read": 1.0, "gram": 4.0}, {"gram": 2.0}]) == {"read": 0.5, "gram": 3.0}


def moves_apart() -> None:
    engine.local_world_size = lambda: 1


def test_processes_that_measure_together_must_share_a_machine(tmp_path: Path, source: Path) -> None:
    done = two(source, tmp_path / "out", {"method": "self", **MEASURED}, moves_apart)
    assert done.returncode != 0
    assert ["start them all on one" in told for told in sentences(done)] == [True], done.stderr
