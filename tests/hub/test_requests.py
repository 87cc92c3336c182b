"""Every request of a push answered wrongly, cut or never: one sentence, no token anywhere, the folder whole."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pytest
from support import file_hashes

from hub.loopback import CUT, SILENT, TOKEN, Hub
from llmfold.hub import push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client, about itself
Cli = Callable[..., tuple[int, str, str]]
NAME, BRANCH = "me/tiny-small", "small"
REQUESTS = {
    "who am I": "GET /api/whoami",
    "create": "POST /api/repos/create",
    "info": f"GET /api/models/{NAME}$",
    "branch": "POST /api/models/.*/branch/",
    "tree": "GET /api/models/.*/tree/",
    "card": "POST /api/validate-yaml",
    "how to send": "POST /api/models/.*/preupload/",
    "batch": "POST /.*/info/lfs/objects/batch",
    "part": "PUT /storage/[^/]+/2",
    "file": "PUT /storage/[^/]+$",
    "parts together": "POST /complete/",
    "verify": "POST /verify/",
    "commit": "POST /api/models/.*/commit/",
}
FAULTS = (401, 403, 404, 409, 429, 500, 503, CUT, SILENT)
MAY_PASS = ("card", "verify")
"""What the push may do without: the hub looks at the card at the commit too, and knows what was sent before."""
REMEDIES = (
    "log in again",
    "write access",
    "check the name",
    "to a branch",
    "broke off",
    "correct",
    "wait a",
    "check the network",
)
IMPATIENT = 0.2
"""Seconds that a busy machine answers within, where the fault is that nobody does."""


def patience(seconds: float) -> AbstractContextManager[float]:
    """Wait no longer for the hub."""
    return mock.patch.object(push, "SILENCE", seconds)


def fails_once_and_for_all(llmfold: Cli, hub: Hub, output: Path, request: str, fault: int | str) -> None:
    """Push against the fault with --debug, and little patience if it is silence; then without the fault."""
    push_it = ("push", output, NAME, "--private", "--revision", BRANCH)
    hub.fail(REQUESTS[request], fault, times=10_000)
    before = file_hashes(output, skip=("README.md",))
    with patience(IMPATIENT if fault == SILENT else push.SILENCE):
        code, stdout, stderr = llmfold(*push_it, "--debug")
    assert hub.count(REQUESTS[request]) > 0, "the fault was met"
    assert TOKEN not in stdout + stderr
    assert not any(TOKEN.encode() in path.read_bytes() for path in output.rglob("*") if path.is_file())
    assert file_hashes(output, skip=("README.md",)) == before
    if request in MAY_PASS and code == 0:
        assert stderr == ""
        assert hub.files(NAME, BRANCH) == file_hashes(output, skip=())
    else:
        last = stderr.splitlines()[-1]
        assert code == 1, (request, fault)
        assert last.startswith("llmfold: ")
        assert "unexpected" not in last
        assert any(remedy in last for remedy in REMEDIES), last
        assert f"llmfold push {output} {NAME} --private --revision {BRANCH}" in last
        assert hub.commits == 0
    hub.faults.clear()
    assert llmfold(*push_it, "--quiet") == (0, "", "")
    assert hub.files(NAME, BRANCH) == file_hashes(output, skip=())


@pytest.mark.parametrize(("number", "request_"), list(enumerate(REQUESTS)))
def test_each_request_fails_in_one_way(llmfold: Cli, hub: Hub, output: Path, number: int, request_: str) -> None:
    fails_once_and_for_all(llmfold, hub, output, request_, FAULTS[number % len(FAULTS)])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("request_", REQUESTS)
def test_each_request_fails_in_every_way(llmfold: Cli, hub: Hub, output: Path, request_: str, fault: int | str) -> None:
    fails_once_and_for_all(llmfold, hub, output, request_, fault)


def test_no_request_is_forgotten(llmfold: Cli, hub: Hub, output: Path) -> None:
    assert llmfold("push", output, NAME, "--private", "--revision", BRANCH, "--quiet")[0] == 0
    assert all(hub.count(pattern) for pattern in REQUESTS.values())
    met = sum(hub.count(pattern) for pattern in (*REQUESTS.values(), "PUT /storage/[^/]+/[^2]", "GET /api/agent"))
    assert met == hub.count(".*"), hub.requests


def test_a_hub_that_falls_silent_once_is_asked_again_where_the_client_does(
    llmfold: Cli, hub: Hub, output: Path
) -> None:
    hub.fail("PUT /storage", SILENT)
    with patience(10 * IMPATIENT):  # what is asked again has to be answered
        assert llmfold("push", output, NAME, "--quiet") == (0, "", "")
        hub.fail("GET /api/whoami", SILENT)
        code, _, stderr = llmfold("push", output, NAME)
    assert code == 1
    assert "the hub fell silent (ReadTimeout): wait a little and run `llmfold push" in stderr
