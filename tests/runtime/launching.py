"""Several processes on one piece of work: by torchrun, and by forks of the test's own process in its place."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from support import environment, write_to

PATIENCE = 120


@dataclass(frozen=True)
class Ended:
    """What a launcher has seen: its exit code, and what all processes have written."""

    returncode: int
    stdout: str
    stderr: str


def launch(processes: int, *program: str, **extra: str) -> Ended:
    """Run a program by torchrun: every process imports everything anew, which takes its time."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    command, env = [*launcher, *program], environment(**extra)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def launch_forks(processes: int, work: Callable[[], int], folder: Path) -> Ended:
    """Run ``work`` in forks of this process as torchrun runs a program, with what they write in files in ``folder``.

    As there, the launcher holds the store in which the processes meet, and when one has failed it sends SIGTERM to
    the others and returns 1.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "localhost"}
    shared |= {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    texts = [folder / "stdout.txt", folder / "stderr.txt"]
    for text in texts:
        text.write_text("")
    running = {_fork({**shared, "RANK": rank, "LOCAL_RANK": rank}, work, texts) for rank in range(processes)}
    failed, deadline = False, time.monotonic() + PATIENCE
    while running:
        ended = {pid: status for pid in running for done, status in [os.waitpid(pid, os.WNOHANG)] if done}
        running -= ended.keys()
        if any(ended.values()) and not failed:
            failed = True
            _send(running, signal.SIGTERM)
        if time.monotonic() > deadline:
            failed = True
            _send(running, signal.SIGKILL)
        time.sleep(0.01)
    return Ended(int(failed), *(text.read_text() for text in texts))


def _send(processes: set[int], number: signal.Signals) -> None:
    for pid in processes:
        os.kill(pid, number)


def _fork(variables: dict[str, object], work: Callable[[], int], texts: list[Path]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update({name: str(value) for name, value in variables.items()})
            write_to(texts, work)
        finally:
            os._exit(99)
    return pid
