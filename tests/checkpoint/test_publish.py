import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from llmfold.checkpoint import JOURNAL_FILE, MARKER_FILE, WorkFolder, free_bytes, replace
from llmfold.checkpoint.lock import acquire_lock, release_lock
from llmfold.errors import LlmfoldError, OutputError, UsageError

from .builders import one_sentence

HEAD = {"run": 1}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def output(tmp_path, source):
    return tmp_path / "out"


def start(output: Path, source: Path, *, overwrite: bool = False) -> WorkFolder:
    return WorkFolder.open(output, overwrite=overwrite, source=source)


def publish(output: Path, source: Path, text: str, *, overwrite: bool = False) -> None:
    with start(output, source, overwrite=overwrite) as work, work.open_journal(HEAD) as journal:
        (work.folder / MARKER_FILE).write_text(text)
        journal.append("all", {}, {})
        work.publish()


def siblings(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir() if path.name not in ("model", output.name))


def snapshot(root: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in [root, *root.rglob("*")]}


def refusal(kind: type[LlmfoldError], output: Path, source: Path, root: Path, *, overwrite: bool = False) -> str:
    before = snapshot(root)
    with pytest.raises(kind) as caught:
        start(output, source, overwrite=overwrite)
    assert one_sentence(caught.value)
    assert snapshot(root) == before
    return str(caught.value)


class TestPublishing:
    def test_only_final_files_appear(self, output, source):
        publish(output, source, "one")
        assert [path.name for path in output.iterdir()] == [MARKER_FILE]
        assert siblings(output) == []

    def test_nothing_is_visible_before(self, output, source):
        with start(output, source) as work:
            (work.folder / MARKER_FILE).write_text("one")
            assert not output.exists()
            assert work.folder.parent == output.parent
            work.publish()
            assert (output / MARKER_FILE).read_text() == "one"

    def test_parents_are_created_and_an_empty_folder_is_taken(self, tmp_path, source):
        publish(tmp_path / "a" / "b" / "out", source, "one")
        (tmp_path / "empty").mkdir()
        publish(tmp_path / "empty", source, "two")
        assert (tmp_path / "a" / "b" / "out" / MARKER_FILE).read_text() == "one"
        assert (tmp_path / "empty" / MARKER_FILE).read_text() == "two"

    def test_permissions_follow_the_umask(self, output, source):
        before = os.umask(0o027)
        try:
            publish(output, source, "one")
        finally:
            os.umask(before)
        assert output.stat().st_mode & 0o777 == 0o750

    def test_folders_inside_are_published(self, output, source):
        with start(output, source) as work:
            (work.folder / "additional_chat_templates").mkdir()
            (work.folder / "additional_chat_templates" / "x.jinja").write_text("x")
            work.publish()
        assert (output / "additional_chat_templates" / "x.jinja").read_text() == "x"

    def test_a_link_to_a_folder_stays_a_link(self, tmp_path, source):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to("disk")
        publish(tmp_path / "link", source, "one")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / MARKER_FILE).read_text() == "one"

    def test_what_appears_meanwhile_is_not_replaced(self, output, source):
        with start(output, source) as work:
            output.mkdir()
            (output / "precious").write_text("x")
            with pytest.raises(UsageError, match="exists"):
                work.publish()
        assert [path.name for path in output.iterdir()] == ["precious"]

    def test_a_failed_rename_loses_nothing(self, output, source, monkeypatch):
        rename = os.rename

        def busy(old, new):
            if Path(new) == output:
                raise OSError(16, "Device or resource busy")
            rename(old, new)

        with start(output, source) as work:
            work.open_journal(HEAD).append("layer-0", {}, {})
            monkeypatch.setattr(os, "rename", busy)
            with pytest.raises(OutputError, match=r"out cannot be put in place \(Device or resource busy\)"):
                work.publish()
        with start(output, source) as work:
            assert list(work.open_journal(HEAD).done) == ["layer-0"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
class TestReplacing:
    @pytest.fixture(autouse=True)
    def _exchange(self, exchange, monkeypatch):
        if not exchange:
            monkeypatch.setattr(replace, "_exchange", lambda one, other: False)

    def test_an_earlier_output_is_replaced(self, output, source):
        publish(output, source, "one")
        publish(output, source, "two", overwrite=True)
        assert (output / MARKER_FILE).read_text() == "two"
        assert siblings(output) == []

    def test_the_earlier_output_stays_until_publication(self, output, source):
        publish(output, source, "one")
        with start(output, source, overwrite=True) as work:
            (work.folder / MARKER_FILE).write_text("two")
            work.open_journal(HEAD).close()
        assert (output / MARKER_FILE).read_text() == "one"


def test_this_kernel_exchanges(tmp_path):
    if sys.platform != "linux":
        pytest.skip("renameat2 is Linux only")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert replace._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists()
    with pytest.raises(OSError, match="No such file"):
        replace._exchange(tmp_path / "a", tmp_path / "missing")


class TestCrashes:
    def test_between_two_renames_the_old_output_comes_back(self, output, source):
        publish(output, source, "one")
        output.rename(replace.old_sibling(output))
        with pytest.raises(UsageError, match="exists"):
            start(output, source)
        assert (output / MARKER_FILE).read_text() == "one"
        assert siblings(output) == []

    def test_after_both_renames_the_old_output_goes(self, output, source):
        publish(output, source, "one")
        old = replace.old_sibling(output)
        old.mkdir()
        (old / MARKER_FILE).write_text("zero")
        start(output, source, overwrite=True).close()
        assert (output / MARKER_FILE).read_text() == "one"
        assert siblings(output) == []

    def test_a_failing_second_rename_puts_the_old_output_back(self, output, source, monkeypatch):
        publish(output, source, "one")
        monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
        rename = os.rename

        def fails_once(old, new):
            if str(old).endswith("-partial"):
                raise OSError(5, "Input/output error")
            rename(old, new)

        with start(output, source, overwrite=True) as work:
            (work.folder / MARKER_FILE).write_text("two")
            monkeypatch.setattr(os, "rename", fails_once)
            with pytest.raises(OutputError, match="Input/output error"):
                work.publish()
        assert (output / MARKER_FILE).read_text() == "one"

    def test_files_without_a_journal_are_not_resumed(self, output, source):
        """So is the old output, when a crash follows an exchange."""
        work = start(output, source)
        (work.folder / "model.safetensors").write_text("whose?")
        (work.folder / "folder").mkdir()
        work.close()
        with start(output, source) as work:
            assert list(work.folder.iterdir()) == []


class TestResuming:
    def interrupted(self, output, source, *, overwrite=False):
        with start(output, source, overwrite=overwrite) as work, work.open_journal(HEAD) as journal:
            (work.folder / "model.safetensors").write_text("half")
            journal.append("layer-0", {}, {})

    def test_the_same_run_goes_on(self, output, source):
        self.interrupted(output, source)
        with start(output, source) as work, work.open_journal(HEAD) as journal:
            assert list(journal.done) == ["layer-0"]
            assert (work.folder / "model.safetensors").read_text() == "half"

    def test_also_with_overwrite(self, output, source):
        publish(output, source, "one")
        self.interrupted(output, source, overwrite=True)
        with start(output, source, overwrite=True) as work, work.open_journal(HEAD) as journal:
            assert list(journal.done) == ["layer-0"]

    def test_another_run_is_refused(self, output, source):
        self.interrupted(output, source)
        with start(output, source) as work, pytest.raises(UsageError, match="pass --overwrite to discard it"):
            work.open_journal({"run": 2})
        with start(output, source) as work:
            assert list(work.open_journal(HEAD).done) == ["layer-0"]

    def test_another_run_with_overwrite_starts_clean(self, output, source):
        self.interrupted(output, source)
        with start(output, source, overwrite=True) as work, work.open_journal({"run": 2}) as journal:
            assert journal.done == {}
            assert [path.name for path in work.folder.iterdir()] == [JOURNAL_FILE]

    def test_discarding(self, output, source):
        self.interrupted(output, source)
        with start(output, source) as work:
            work.discard()
            assert list(work.folder.iterdir()) == []
        assert siblings(output) == []


class TestRefusals:
    def test_an_existing_output(self, output, source, tmp_path):
        publish(output, source, "one")
        assert "pass --overwrite" in refusal(UsageError, output, source, tmp_path)

    def test_a_folder_llmfold_did_not_make(self, output, source, tmp_path):
        output.mkdir()
        (output / "thesis.tex").write_text("x")
        assert "was not made by llmfold" in refusal(UsageError, output, source, tmp_path, overwrite=True)

    def test_a_file(self, output, source, tmp_path):
        output.write_text("x")
        assert "is a file" in refusal(UsageError, output, source, tmp_path, overwrite=True)
        assert "is a file" in refusal(UsageError, output / "below" / "it", source, tmp_path)

    def test_overlap_with_the_model(self, source, tmp_path):
        (tmp_path / "link").symlink_to("model")
        for output in (source, source / "out", tmp_path, tmp_path / "link", tmp_path / "link" / "out", Path("/")):
            assert "overlaps the model folder" in refusal(UsageError, output, source, tmp_path, overwrite=True)

    def test_a_loop_of_links(self, output, source, tmp_path):
        output.symlink_to("out")
        refusal(UsageError, output, source, tmp_path)

    def test_a_name_too_long(self, source, tmp_path):
        assert "File name too long" in refusal(OutputError, tmp_path / ("x" * 250), source, tmp_path)

    def test_a_folder_that_may_not_be_written(self, output, source, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert "is not writable" in refusal(OutputError, output, source, tmp_path)

    def test_a_place_where_no_folder_can_be_made(self, source, tmp_path):
        if not Path("/proc/self").exists():
            pytest.skip("no /proc")
        assert "/proc/x cannot be written" in refusal(OutputError, Path("/proc/x/out"), source, tmp_path)

    def test_a_planted_link_is_not_followed(self, output, source, tmp_path):
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim" / "precious").write_text("x")
        (tmp_path / ".out.llmfold-partial").symlink_to("victim")
        with pytest.raises(OutputError, match="is a link: remove it"):
            start(output, source)
        assert (tmp_path / "victim" / "precious").exists()


class TestLock:
    def test_one_run_per_output(self, output, source, tmp_path):
        with start(output, source):
            with pytest.raises(OutputError, match="another llmfold run is writing") as caught:
                start(output, source)
            assert one_sentence(caught.value)
            start(tmp_path / "other", source).close()
        start(output, source).close()
        assert siblings(output) == []

    def test_a_refused_run_leaves_no_lock(self, output, source):
        publish(output, source, "one")
        output.rename(replace.old_sibling(output))
        with pytest.raises(UsageError):
            start(output, source)
        start(output, source, overwrite=True).close()

    def test_a_killed_run_leaves_no_lock(self, output, source):
        ready, report = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=hold, args=(output, source, report))
        process.start()
        assert ready.recv() == "locked"
        with pytest.raises(OutputError, match="another llmfold run"):
            start(output, source)
        process.kill()
        process.join()
        with start(output, source) as work:
            assert list(work.open_journal(HEAD).done) == ["layer-0"]

    def test_many_at_once_exclude_each_other(self, tmp_path):
        """Every process that gets in adds to a counter without care; nothing is lost when they exclude each other."""
        counter = tmp_path / "counter"
        counter.write_text("0")
        processes = [multiprocessing.get_context("fork").Process(target=count_up, args=(counter,)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert counter.read_text() == "120"


def hold(output: Path, source: Path, report: Connection) -> None:
    work = start(output, source)
    work.open_journal(HEAD).append("layer-0", {}, {})
    report.send("locked")
    time.sleep(60)


def count_up(counter: Path) -> None:
    wins = 0
    while wins < 40:
        try:
            lock = acquire_lock(counter.with_suffix(".lock"), "busy")
        except OutputError:
            continue
        count = int(counter.read_text())
        time.sleep(0.0005)
        counter.write_text(str(count + 1))
        release_lock(lock)
        wins += 1


def test_free_bytes_of_a_path_yet_to_be_made(tmp_path):
    status = os.statvfs(tmp_path)
    assert 0 < free_bytes(tmp_path / "not" / "there") <= status.f_blocks * status.f_frsize
