"""A push to a hub on the loopback: what arrives, what is said when it does not, and that running again completes it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from support import environment, file_hashes

from hub import loopback
from hub.loopback import CUT, PART, TOKEN, Hub, Repo
from llmfold import FoldReport, HubError, UsageError
from llmfold.hub.push import Target
from llmfold.records.saved import load_record

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client, about itself
Cli = Callable[..., tuple[int, str, str]]
NAME = "me/tiny-small"


def everything(folder: Path) -> dict[str, str]:
    return file_hashes(folder, skip=())


def test_what_arrives_is_byte_equal(llmfold: Cli, hub: Hub, output: Path) -> None:
    assert any(path.stat().st_size > PART for path in output.glob("*.safetensors"))
    code, stdout, stderr = llmfold("push", output, NAME)
    assert (code, stderr) == (0, "")
    assert hub.files(NAME) == everything(output)
    assert {"README.md", "report.json", "LICENSE", "model.safetensors.index.json"} <= hub.files(NAME).keys()
    assert stdout.splitlines()[-1] == f"{hub.endpoint}/{NAME}"
    assert all(f"  {name}" in stdout for name in everything(output))
    assert hub.count("PUT /storage/[^/]+/[0-9]+") > hub.count("PUT /storage/[^/]+$") > 0, "parts and whole files alike"


def test_the_folder_stays_clean_and_the_card_names_the_address(llmfold: Cli, hub: Hub, output: Path) -> None:
    before = everything(output)
    llmfold("push", output, NAME)
    after = everything(output)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["README.md"]
    assert f'from_pretrained("{NAME}", dtype="auto")' in (output / "README.md").read_text()
    assert llmfold("push", output, "me/other", "--quiet") == (0, "", "")
    assert NAME not in (output / "README.md").read_text()
    (output / "README.md").unlink()
    llmfold("push", output, NAME)
    assert everything(output) == after


def test_a_card_that_was_edited_is_pushed_as_it_is(llmfold: Cli, hub: Hub, output: Path) -> None:
    card = output / "README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    before = everything(output)
    assert llmfold("push", output, NAME, "--quiet")[0] == 0
    assert hub.files(NAME) == everything(output) == before


def test_a_second_push_sends_no_weights_and_commits_nothing(llmfold: Cli, hub: Hub, output: Path) -> None:
    llmfold("push", output, NAME)
    sent, commits = hub.count("PUT /storage"), hub.commits
    assert llmfold("push", output, NAME, "--quiet") == (0, "", "")
    assert (hub.count("PUT /storage"), hub.commits) == (sent, commits)


def test_weights_of_an_earlier_push_go(llmfold: Cli, hub: Hub, output: Path) -> None:
    """Transformers prefers a single file to an index: what is left of another model would be loaded."""
    old = {"model.safetensors": b"old", "model-00001-of-00099.safetensors": b"old", "notes.txt": b"mine"}
    hub.repos[NAME] = Repo(branches={"main": old})
    assert llmfold("push", output, NAME)[0] == 0
    kept = hub.files(NAME)
    kept.pop("notes.txt")
    assert kept == everything(output)


def test_private_and_revision(llmfold: Cli, hub: Hub, output: Path) -> None:
    code, stdout, _ = llmfold("push", output, NAME, "--private", "--revision", "ratio-0.2")
    assert (code, stdout.splitlines()[-1]) == (0, f"{hub.endpoint}/{NAME}/tree/ratio-0.2")
    assert hub.repos[NAME].private
    assert hub.files(NAME, "ratio-0.2") == everything(output)
    assert hub.files(NAME) == {}


def test_private_never_pushes_to_a_public_repository(llmfold: Cli, hub: Hub, output: Path) -> None:
    hub.repos[NAME] = Repo(private=False)
    code, _, stderr = llmfold("push", output, NAME, "--private")
    assert code == 1
    assert f"{NAME} exists and is public, so nothing was pushed" in stderr
    assert hub.count("PUT") == hub.commits == 0


@pytest.mark.parametrize(
    "where", ["POST .*preupload", "POST .*batch", "PUT /storage", "POST .*commit", "POST .*create", "GET .*whoami"]
)
@pytest.mark.parametrize("fault", [500, 503, CUT])
def test_what_passes_is_tried_again(llmfold: Cli, hub: Hub, output: Path, where: str, fault: int | str) -> None:
    hub.fail(where, fault)
    assert llmfold("push", output, NAME, "--quiet") == (0, "", "")
    assert hub.files(NAME) == everything(output)
    assert hub.commits == 1


FAILURES: dict[str, tuple[str, int | str, str]] = {
    "401 at login": ("GET .*whoami", 401, "did not accept the token (401): log in again with `hf auth login`"),
    "401 in the middle": ("PUT /storage", 401, "did not accept the token (401)"),
    "403 at creation": ("POST .*create", 403, f"the token may not write to {NAME} (403)"),
    "403 at commit": ("POST .*commit", 403, f"the token may not write to {NAME} (403)"),
    "404": ("POST .*preupload", 404, f"there is no {NAME} on the hub that this token can see (404)"),
    "413": ("POST .*commit", 413, "the hub refused what was sent to me/tiny-small (413: ordered 413)"),
    "429": ("POST .*batch", 429, "the hub keeps answering 429"),
    "500": ("POST .*commit", 500, "the hub keeps answering 500"),
    "502 from storage": ("PUT /storage", 502, "the hub keeps answering 502"),
    "cut": ("PUT /storage", CUT, "the connection to the hub failed"),
    "cut at commit": ("POST .*commit", CUT, "the connection to the hub failed"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_a_sentence_and_running_again_completes_the_push(
    llmfold: Cli, hub: Hub, output: Path, case: str
) -> None:
    where, fault, words = FAILURES[case]
    hub.fail(where, fault, times=1000)
    code, stdout, stderr = llmfold("push", output, NAME)
    assert code == 1
    assert words in stderr
    assert f"run `llmfold push {output} {NAME}`" in stderr
    assert stderr.count("\n") == 1, stderr
    assert TOKEN not in stdout + stderr
    assert "/storage/" not in stderr, "addresses of storage are signed, and so are secret"
    assert hub.commits == 0
    hub.faults.clear()
    before = hub.count("PUT /storage")
    assert llmfold("push", output, NAME)[0] == 0
    assert hub.files(NAME) == everything(output)
    if "commit" in where:
        assert hub.count("PUT /storage") == before, "what had arrived was sent again"


@pytest.fixture
def xet(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same hub with the client at its defaults: it sends in several commits, and large files by Xet."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    return hub


def test_the_clients_default_way(
    llmfold: Cli, xet: Hub, output: Path, monkeypatch: pytest.MonkeyPatch, session_output: Path
) -> None:
    monkeypatch.setattr(loopback, "is_large", lambda *_: False)  # the loopback does not speak Xet
    xet.fail("POST .*commit", 500)
    xet.fail("POST .*preupload", CUT)
    assert llmfold("push", output, NAME, "--quiet") == (0, "", "")
    assert xet.files(NAME) == everything(output)
    assert llmfold("push", output, NAME, "--quiet")[0] == 0
    assert xet.commits == 1
    assert sorted(everything(output)) == sorted(everything(session_output))


@pytest.mark.parametrize(("status", "words"), [(401, "did not accept the token (401)"), (403, "may not write to")])
def test_a_refusal_of_xet_is_a_sentence(llmfold: Cli, xet: Hub, output: Path, status: int, words: str) -> None:
    xet.fail("GET .*xet-write-token", status, times=1000)
    code, _, stderr = llmfold("push", output, NAME, "--quiet")
    assert (code, stderr.count("\n")) == (1, 1), stderr
    assert words in stderr
    assert xet.count("GET .*xet-write-token") == 1


def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    llmfold: Cli, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_commit = HfApi.create_commit

    def lossy(self: HfApi, *arguments: object, **options: object) -> object:
        done = create_commit(self, *arguments, **options)  # type: ignore[call-overload]
        calls.append(hub.commits)
        if len(calls) == 1:
            raise ConnectionResetError
        return done

    calls: list[int] = []
    monkeypatch.setattr(HfApi, "create_commit", lossy)
    assert llmfold("push", output, NAME)[0] == 0
    assert calls == [1, 1]
    assert hub.files(NAME) == everything(output)


def test_no_hub_at_all(llmfold: Cli, hub: Hub, output: Path) -> None:
    hub.close()
    code, _, stderr = llmfold("push", output, NAME)
    assert (code, stderr.count("\n")) == (1, 1)
    assert "the connection to the hub failed (ConnectError): check the network and run" in stderr


def test_ctrl_c_says_how_to_go_on(llmfold: Cli, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "upload_folder", interrupt)
    code, _, stderr = llmfold("push", output, NAME)
    assert code == 130
    assert stderr == f"llmfold: interrupted; run `llmfold push {output} {NAME}` to go on, what has arrived is kept\n"


def test_a_card_that_the_hub_would_refuse_is_found_before_anything_is_sent(
    llmfold: Cli, hub: Hub, output: Path
) -> None:
    (output / "README.md").write_text("---\nbase_model: ./local\n---\n")
    code, _, stderr = llmfold("push", output, NAME)
    assert code == 1
    assert "the hub does not accept" in stderr
    assert "base_model" in stderr
    assert stderr.count("\n") == 1
    (output / "README.md").write_text("---\nlicense: [\n---\n")
    assert "the hub does not accept" in llmfold("push", output, NAME)[2]
    assert hub.count("PUT") == hub.commits == 0


def test_without_a_token(llmfold: Cli, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, _, stderr = llmfold("push", output, NAME)
    assert code == 1
    assert "there is no token to push to me/tiny-small with: log in with `hf auth login`, or set HF_TOKEN" in stderr
    assert hub.requests == []


def test_with_a_token_that_may_only_read(llmfold: Cli, hub: Hub, output: Path) -> None:
    hub.role = "read"
    assert "the token may only read" in llmfold("push", output, NAME)[2]


def test_offline(llmfold: Cli, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, _, stderr = llmfold("push", output, NAME)
    assert (code, stderr) == (1, "llmfold: HF_HUB_OFFLINE is set, so nothing can be pushed: unset it\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody",), "does not say whose it is: give USER/NAME"),
        (("a/b/c",), "is not a name on the hub"),
        (("me/ti ny",), "is not a name on the hub"),
        (("me/x", "--revision", "a..b"), "revision 'a..b' is not the name of a branch"),
        (("me/x", "--revision", "-x y"), "revision"),
        ((), "required"),
    ],
)
def test_bad_usage(llmfold: Cli, hub: Hub, output: Path, arguments: tuple[str, ...], words: str) -> None:
    code, _, stderr = llmfold("push", output, *arguments)
    assert (code, stderr.count("\n")) == (2, 1)
    assert words in stderr
    assert hub.requests == []


def _unfinished(folder: Path) -> None:
    (folder / "journal.jsonl").write_text("")


def _without_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[-1].unlink()


def _foreign(folder: Path) -> None:
    (folder / "llmfold.json").unlink()


def _without_report(folder: Path) -> None:
    (folder / "report.json").unlink()


def _bad_report(folder: Path) -> None:
    (folder / "report.json").write_text("[]")


def _empty_report(folder: Path) -> None:
    (folder / "report.json").write_text('{"source": {}, "config": {}, "plan": {}, "layers": []}')


def _leaking(folder: Path) -> None:
    (folder / "key").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_unfinished, "is unfinished"),
        (_without_shard, "is not whole"),
        (_foreign, "was not made by llmfold"),
        (_without_report, "has no report.json"),
        (_bad_report, "report.json cannot be read"),
        (_empty_report, "report.json is not a report of llmfold"),
        (_leaking, "outside the model folder"),
    ],
)
def test_only_a_finished_output_is_pushed(
    llmfold: Cli, hub: Hub, output: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(output)
    code, _, stderr = llmfold("push", output, NAME)
    assert (code, stderr.count("\n")) == (1, 1)
    assert words in stderr
    assert hub.count("POST .*(create|commit)") == 0


def test_private_folders_stay_at_home(llmfold: Cli, hub: Hub, output: Path) -> None:
    pushed = everything(output).keys()
    for name in (".git/config", ".cache/huggingface/x"):
        (output / name).parent.mkdir(parents=True)
        (output / name).write_text("mine")
    assert llmfold("push", output, NAME)[0] == 0
    assert hub.files(NAME).keys() == pushed


def test_names_like_patterns_arrive(llmfold: Cli, hub: Hub, output: Path) -> None:
    (output / "notes [draft]*.txt").write_text("x")
    assert llmfold("push", output, NAME)[0] == 0
    assert hub.files(NAME) == everything(output)


def test_the_report_pushes(hub: Hub, output: Path) -> None:
    report = FoldReport.of(load_record(output))
    assert report.push_to_hub(NAME, private=True, quiet=True) == f"{hub.endpoint}/{NAME}"
    assert hub.repos[NAME].private
    assert hub.files(NAME) == everything(output)
    with pytest.raises(UsageError):
        report.push_to_hub("nobody")
    hub.fail("POST .*commit", 403)
    (output / "new.txt").write_text("x")
    with pytest.raises(HubError, match="403"):
        report.push_to_hub(NAME, quiet=True)


FOLD = ("--ratio", 0.2, "--method", "paper", "--verify", "shapes")


def test_fold_and_push(llmfold: Cli, hub: Hub, session_model: Path, space: Path) -> None:
    out = space / "out"
    fold = ("--model", session_model, *FOLD, "--output", out)
    code, stdout, stderr = llmfold(*fold, "--push-to-hub", NAME, "--private", "--hub-revision", "small")
    assert (code, stdout.splitlines()[-1], stderr) == (0, f"{hub.endpoint}/{NAME}/tree/small", "")
    assert hub.repos[NAME].private
    assert hub.files(NAME, "small") == everything(out)


def test_a_fold_that_cannot_be_pushed_does_not_begin(llmfold: Cli, hub: Hub, session_model: Path, space: Path) -> None:
    fold = ("--model", session_model, *FOLD, "--output", space / "out")
    hub.fail("GET .*whoami", 401)
    assert llmfold(*fold, "--push-to-hub", NAME)[0] == 1
    assert llmfold(*fold, "--push-to-hub", "nobody")[0] == 2
    assert llmfold(*fold, "--private")[0] == 2
    assert llmfold(*fold, "--hub-revision", "x")[0] == 2
    assert os.listdir(space) == []


def test_a_fold_whose_push_fails_is_kept(llmfold: Cli, hub: Hub, session_model: Path, space: Path) -> None:
    out = space / "out"
    hub.fail("POST .*commit", 403)
    code, _, stderr = llmfold("--model", session_model, *FOLD, "--output", out, "--push-to-hub", NAME)
    assert code == 1
    assert f"run `llmfold push {out} {NAME}`" in stderr
    assert llmfold("push", out, NAME)[0] == 0
    assert hub.files(NAME) == everything(out)


@pytest.mark.slow
def test_in_a_process_of_its_own(hub: Hub, output: Path, tmp_path: Path) -> None:
    """Nothing patched: the environment alone, and the token from the file where a login leaves it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    variables = {**environment(**variables), "HF_HUB_OFFLINE": "0"}
    del variables["HF_TOKEN"]
    command = [sys.executable, "-m", "llmfold", "push", str(output), NAME]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"{hub.endpoint}/{NAME}"
    assert hub.files(NAME) == everything(output)


def test_targets() -> None:
    assert Target("me/x", private=True, revision="refs/pr/1").command(Path("my out")) == (
        "llmfold push 'my out' me/x --private --revision refs/pr/1"
    )
    for revision in ("", "a b", "a..b", "/a", "a/", "a.lock", "-a", "a@{b", "a//b", "a."):
        with pytest.raises(UsageError):
            Target("me/x", revision=revision)
