"""Several processes on one fold, launched by torchrun as people do: the same bytes as one, and what a death leaves."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import environment, file_hashes, fold, tiny_model

from llmfold.checkpoint import Journal
from llmfold.errors import LlmfoldError, OutputError, UsageError
from llmfold.streaming.launch import FollowerError, launched, leads, neighbours, speaks
from llmfold.streaming.ranks import Ranks
from llmfold.streaming.stages import mean_seconds

LAYERS = 5
OPTIONS: dict[str, Any] = {"fidelity_tokens": 0, "mlp_ratio": 0.25, "attention_ratio": 0.5, "max_shard_size": "40KB"}
DYING = """
import os, signal, sys
from llmfold.checkpoint import Journal
from llmfold.cli import main

append = Journal.append

def struck(self, unit, *rest):
    append(self, unit, *rest)
    if unit == os.environ["DIES_AFTER"]:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = struck
sys.exit(main())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("ranks") / "model", num_hidden_layers=LAYERS, shards=2)


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("alone") / "out"
    fold(source, output=out, **OPTIONS)
    return file_hashes(out)


def launch(processes: int, program: tuple[str, ...], *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    command, env = [*launcher, *program, *words], environment(**extra)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def two(
    program: tuple[str, ...], source: Path, out: Path, options: dict[str, Any] | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    options = {"method": "paper", **OPTIONS} if options is None else options
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return launch(2, program, "--model", str(source), "--output", str(out), *words, **extra)


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("llmfold: ")]


def test_two_processes_write_the_bytes_of_one(tmp_path: Path, source: Path, alone: dict[str, str]) -> None:
    done = two(("-m", "llmfold"), source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "out") == alone
    assert done.stdout.count("loads as") == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["machine"]["processes"] == 2
    assert len(report["layers"]) == LAYERS


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_with_a_sentence_and_one_process_resumes(
    tmp_path: Path, source: Path, alone: dict[str, str], rank: int
) -> None:
    program, out = tmp_path / "dying.py", tmp_path / "out"
    program.write_text(DYING)
    done = two((str(program),), source, out, DIES_AFTER=f"layer-{rank}")
    assert done.returncode == 1
    told = sentences(done)
    assert len(told) == 1, done.stderr
    assert "run the same command again to resume" in told[0]
    assert not out.exists()
    report = fold(source, output=out, **OPTIONS)
    assert report.resumed_layers >= 1
    assert file_hashes(out) == alone


MEASURED: dict[str, Any] = {"fidelity_tokens": 0, "ratio": 0.25, "ratio_of": "decoder"}
ON_TOKENS: dict[str, Any] = {"num_samples": 40, "sequence_length": 12, "refine": 2}


@pytest.mark.parametrize("options", [{"method": "self", **ON_TOKENS}, {"method": "weights", "effort": "quick"}], ids=lambda o: o["method"])
def test_two_processes_that_measure_together_write_the_bytes_of_one(
    tmp_path: Path, source: Path, options: dict[str, Any]
) -> None:
    report = fold(source, output=tmp_path / "alone", **MEASURED, **options)
    done = two(("-m", "llmfold"), source, tmp_path / "out", {**MEASURED, **options})
    assert done.returncode == 0, done.stderr
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "alone")
    together = json.loads((tmp_path / "out" / "report.json").read_text())
    assert together["machine"]["processes"] == 2
    assert together["seconds"].keys() == report.seconds.keys()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_killed_while_all_measure_ends_the_run_and_any_number_resumes(
    tmp_path: Path, source: Path, processes: int
) -> None:
    options = {"method": "self", **MEASURED, **ON_TOKENS}
    program, out = tmp_path / "dying.py", tmp_path / "out"
    program.write_text(DYING)
    done = two((str(program),), source, out, options, DIES_AFTER="layer-1")
    assert done.returncode == 1
    assert ["resume" in told for told in sentences(done)] == [True], done.stderr
    assert not out.exists()
    resumed = two(("-m", "llmfold"), source, out, options) if processes == 2 else None
    if resumed is None:
        fold(source, output=out, **options)
    else:
        assert resumed.returncode == 0, resumed.stderr
    assert json.loads((out / "report.json").read_text())["resumed_layers"] >= 2
    fold(source, output=tmp_path / "alone", **options)
    assert file_hashes(out) == file_hashes(tmp_path / "alone")


TEAM = """
import torch
from llmfold.streaming.ranks import join_ranks
from llmfold.streaming.team import Team

ranks = join_ranks()
team, computed = Team(ranks), []

def compute(block):
    computed.append(block)
    return torch.tensor([block, 10.0 * block]), torch.full((block % 3, 2), block, dtype=torch.int64)

for blocks in ([], [5], list(range(7)), list(range(3, 12))):
    computed.clear()
    found = list(team.in_order(blocks, compute))
    assert [float(pair[0]) for pair, _ in found] == blocks
    assert all(rest.shape == (b % 3, 2) and bool((rest == b).all()) for b, (_, rest) in zip(blocks, found))
    assert computed == blocks[ranks.rank::3]
    acted = []
    team.each(blocks, acted.append)
    assert acted == computed
assert team.made(lambda first: first) == (ranks.rank == 0)
print("agreed", flush=True)
"""


EVERYONE = """
from llmfold.errors import OutputError
from llmfold.streaming.launch import FollowerError
from llmfold.streaming.ranks import join_ranks
from llmfold.verification import DamagedError

ranks = join_ranks()
assert ranks.everyone(lambda: 10 * ranks.rank) == [0, 10, 20]

def fail():
    if ranks.rank == 1:
        raise DamagedError("tensor a is lost")
    if ranks.rank == 2:
        raise OutputError("never told")

try:
    ranks.everyone(fail)
except DamagedError as error:
    assert ranks.leads and str(error) == "tensor a is lost"
except FollowerError as error:
    assert not ranks.leads and str(error) == "tensor a is lost" and error.exit_code == DamagedError.exit_code
else:
    raise AssertionError("nobody heard of it")
print("agreed", flush=True)
"""
TAMPERING = """
import os, signal, sys, time
from pathlib import Path
from llmfold import verification
from llmfold.cli import main

verification.IN_MEMORY_BYTES = 0
if os.environ["STRIKE"] == "a signal":

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
elif os.environ["STRIKE"] == "a tensor":
    compare = verification.read_back

    def struck(folder, digests, names):
        if os.environ["RANK"] == "1":
            digests = {**digests, names[0]: "0" * 64}
        compare(folder, digests, names)

    verification.read_back = struck
else:
    original = verification._logits
    verification._logits = lambda model, tokens: original(model, tokens) * (2 if os.environ["RANK"] == "1" else 1)
sys.exit(main())
"""


def test_three_processes_share_blocks_results_and_failures(tmp_path: Path) -> None:
    program = tmp_path / "three.py"
    program.write_text(TEAM + EVERYONE)
    done = launch(3, (str(program),))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agreed") == 6


@pytest.mark.parametrize(
    ("strike", "said", "kept"),
    [("a tensor", "is not what was produced", False), ("logits", "logits differ", True), ("a signal", "resume", True)],
)
def test_what_happens_to_one_process_in_the_check_stops_the_publication(
    tmp_path: Path, source: Path, strike: str, said: str, kept: bool
) -> None:
    program = tmp_path / "tampering.py"
    program.write_text(TAMPERING)
    options = {"method": "paper", "dtype": "bfloat16", **OPTIONS}  # both have a pass by transformers to do
    done = two((str(program),), source, tmp_path / "out", options, STRIKE=strike, BOTH_THERE=str(tmp_path / "there"))
    assert done.returncode != 0
    assert len(sentences(done)) == 1, done.stderr
    assert said in sentences(done)[0]
    assert "transformers cannot" not in sentences(done)[0]
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.llmfold-partial").exists() is kept
    assert not list(tmp_path.glob("*-offload-*"))


def test_a_refusal_is_told_once(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    done = two(("-m", "llmfold"), source, tmp_path / "out")
    assert done.returncode == 1
    assert len(sentences(done)) == 1, done.stderr
    assert "exists" in sentences(done)[0]


def test_units_are_dealt_out_whole_and_once() -> None:
    units = list(range(11))
    dealt = [list(Ranks(rank, 3).mine(units)) for rank in range(3)]
    assert sorted(unit for part in dealt for unit in part) == units
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert Ranks().mine(units) == units


def test_alone_nothing_is_shared() -> None:
    assert Ranks().everyone(lambda: 3) == [3]
    assert (launched(), neighbours(), leads()) == (1, 1, True)
    assert Ranks().lead(lambda: 3) == Ranks().first(lambda: 3) == 3
    assert Ranks().gather("x") == ["x"]
    assert speaks(LlmfoldError("x"))
    assert not speaks(FollowerError("x", 2))


def test_a_launcher_is_told_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched() == 1
    for name, value in {"RANK": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (launched(), neighbours(), leads()) == (4, 2, False)
    assert not speaks(UsageError("the same everywhere"))
    assert speaks(OutputError("here only"))


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


APART = """
import sys
from llmfold.streaming import engine
from llmfold.cli import main

engine.neighbours = lambda: 1
sys.exit(main())
"""


def test_processes_that_measure_together_must_share_a_machine(tmp_path: Path, source: Path) -> None:
    program = tmp_path / "apart.py"
    program.write_text(APART)
    done = two((str(program),), source, tmp_path / "out", {"method": "self", **MEASURED})
    assert done.returncode != 0
    assert ["start them all on one" in told for told in sentences(done)] == [True], done.stderr
