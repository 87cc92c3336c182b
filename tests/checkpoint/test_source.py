import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub

from llmfold.checkpoint import Checkpoint, Source, resolve
from llmfold.errors import CheckpointError, UsageError

from .builders import one_sentence, sharded, single_file, write_config, write_index

TOKEN = "hf_secretsecretsecret"


REAL_DOWNLOAD = huggingface_hub.snapshot_download


class ConnectError(Exception):
    """Stands for the transport's own errors: requests, httpx or httpx2, by version of the client."""


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={"authorization": TOKEN}, request=None)


def refusal(model: str, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(model, **options)
    assert one_sentence(caught.value)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    def forbidden(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", forbidden)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", forbidden)
    monkeypatch.chdir(tmp_path)


class TestLocal:
    def test_a_folder_is_used_as_it_is(self, tmp_path):
        folder = single_file(tmp_path / "owner" / "name")
        assert resolve(str(folder)) == Source(folder, str(folder), None)
        assert resolve("owner/name") == Source(Path("owner/name"), "owner/name", None)

    def test_home_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        single_file(tmp_path / "m")
        assert resolve("~/m") == Source(tmp_path / "m", "~/m", None)

    @pytest.mark.parametrize("model", ["./m", "../m", "/no/m", "~/m", "a/b/c"])
    def test_a_missing_path_is_not_looked_up_on_the_hub(self, model):
        assert refusal(model) == f"model folder {model} does not exist"

    def test_a_file_is_not_a_model(self, tmp_path):
        folder = single_file(tmp_path / "m")
        assert "is a file: pass the folder" in refusal(str(folder / "model.safetensors"))

    def test_a_revision_needs_the_hub(self, tmp_path):
        with pytest.raises(UsageError, match="--revision abc works for hub models only"):
            resolve(str(single_file(tmp_path / "m")), revision="abc")


class FakeHub:
    """Serves a repository from a folder as snapshot_download does, and remembers what it was asked for."""

    def __init__(self, monkeypatch, root: Path, repository: Path) -> None:
        self.repository = repository
        self.snapshot = root / "models--owner--name" / "snapshots" / "c0ffee"
        self.snapshot.mkdir(parents=True)
        self.asked: list[tuple[str, str | None]] = []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", self.names)

    def names(self, repo_id, *, revision=None):
        return sorted(str(path.relative_to(self.repository)) for path in self.repository.rglob("*") if path.is_file())

    def download(self, repo_id, *, revision=None, allow_patterns=None):
        self.asked.append((repo_id, revision))
        for name in huggingface_hub.utils.filter_repo_objects(self.names(repo_id), allow_patterns=allow_patterns):
            (self.snapshot / name).parent.mkdir(exist_ok=True, parents=True)
            (self.snapshot / name).write_bytes((self.repository / name).read_bytes())
        return str(self.snapshot)

    def fetched(self):
        return sorted(str(path.relative_to(self.snapshot)) for path in self.snapshot.rglob("*") if path.is_file())


class TestHub:
    @pytest.fixture
    def repository(self, tmp_path):
        folder = sharded(tmp_path / "repository", {"a": torch.ones(2)}, {"b": torch.ones(2)})
        for name in ("tokenizer.json", "tokenizer.model", "LICENSE.txt", "USE_POLICY.md", "merges.txt", "modeling.py"):
            (folder / name).write_text("{}")
        for name in ("pytorch_model.bin", "consolidated.00.pth", "consolidated.safetensors", "model.gguf", "README.md"):
            (folder / name).write_text("large")
        return folder

    def test_fetches_only_what_is_needed(self, monkeypatch, tmp_path, repository):
        fake = FakeHub(monkeypatch, tmp_path, repository)
        source = resolve("owner/name", revision="v1")
        assert source == Source(fake.snapshot, "owner/name", "c0ffee")
        unwanted = {"pytorch_model.bin", "consolidated.00.pth", "consolidated.safetensors", "model.gguf"}
        assert set(fake.fetched()) == set(fake.names("")) - unwanted
        assert fake.asked == [("owner/name", "v1"), ("owner/name", "c0ffee")]
        assert list(Checkpoint.open(source.folder).tensors) == ["a", "b"]

    def test_without_weights(self, monkeypatch, tmp_path, repository):
        fake = FakeHub(monkeypatch, tmp_path, repository)
        assert resolve("owner/name", weights=False).revision == "c0ffee"
        assert not [name for name in fake.fetched() if name.endswith(".safetensors")]
        assert {"config.json", "model.safetensors.index.json"} <= set(fake.fetched())

    def test_a_single_file_model(self, monkeypatch, tmp_path):
        fake = FakeHub(monkeypatch, tmp_path, single_file(tmp_path / "repository"))
        resolve("owner/name")
        assert fake.fetched() == ["config.json", "model.safetensors"]

    def test_shard_names_are_not_patterns(self, monkeypatch, tmp_path, repository):
        write_index(repository, {"a": "*.safetensors"})
        fake = FakeHub(monkeypatch, tmp_path, repository)
        resolve("owner/name")
        assert not [name for name in fake.fetched() if name.endswith(".safetensors")]

    def test_an_index_that_leaves_the_folder_is_refused(self, monkeypatch, tmp_path, repository):
        write_index(repository, {"a": "../x.safetensors"})
        FakeHub(monkeypatch, tmp_path, repository)
        assert "not a safetensors file name" in refusal("owner/name")

    def test_pickles_only(self, monkeypatch, tmp_path):
        repository = write_config(tmp_path / "repository")
        (repository / "pytorch_model.bin").write_bytes(b"\x80")
        fake = FakeHub(monkeypatch, tmp_path, repository)
        assert "owner/name has pickled weights only (pytorch_model.bin)" in refusal("owner/name")
        assert fake.fetched() == ["config.json"]

    def test_no_weights_at_all(self, monkeypatch, tmp_path):
        FakeHub(monkeypatch, tmp_path, write_config(tmp_path / "repository"))
        assert "a config but no weights" in refusal("owner/name")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (hub.GatedRepoError(TOKEN, response=response(403)), "accept its licence at https://huggingface.co/owner/name"),
        (
            hub.RepositoryNotFoundError(TOKEN, response=response(401)),
            "no folder and no public hub model called owner/n",
        ),
        (hub.RevisionNotFoundError(TOKEN, response=response(404)), "has no revision v9"),
        (hub.HfHubHTTPError(TOKEN, response=response(401)), "refused access to owner/name (401): log in"),
        (hub.HfHubHTTPError(TOKEN, response=response(403)), "refused access to owner/name (403)"),
        (hub.HfHubHTTPError(TOKEN, response=response(503)), "the hub answered 503"),
        (
            caused(hub.LocalEntryNotFoundError(TOKEN), hub.HfHubHTTPError("x", response=response(403))),
            "refused access to owner/name (403)",
        ),
        (caused(hub.LocalEntryNotFoundError(TOKEN), ConnectError("x")), "pass a local folder"),
        (hub.LocalEntryNotFoundError(TOKEN), "the hub cannot be reached"),
        (hub.OfflineModeIsEnabled(TOKEN), "the hub cannot be reached (OfflineModeIsEnabled)"),
        (ConnectError(TOKEN), "the hub cannot be reached (ConnectError)"),
        (ConnectionResetError(TOKEN), "check the network, or pass a local folder"),
        (hub.HFValidationError(TOKEN), "neither a folder nor a valid hub name"),
        (OSError(errno.ENOSPC, TOKEN), "the disk is full while downloading owner/name"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_of_the_hub_are_one_sentence(monkeypatch, error, sentence):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert sentence in refusal("owner/name", revision="v9")


def test_the_real_client_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", REAL_DOWNLOAD)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "pass a local folder" in refusal("owner/name")
    assert "valid hub name" in refusal("owner name")
    assert "valid hub name" in refusal("")
