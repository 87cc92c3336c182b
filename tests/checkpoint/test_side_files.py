import os

import pytest

from llmfold.checkpoint import Checkpoint
from llmfold.errors import CheckpointError

from .builders import single_file

COPIED = [
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "qwen.tiktoken", "spiece.model", "chat_template.jinja"),
    *("chat_template.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("processor_config.json", "LICENSE", "license.txt", "LICENSE.md", "NOTICE", "Notice.txt", "USE_POLICY.md"),
]
LEFT = [
    "README.md",
    "modeling_x.py",
    "pytorch_model.bin",
    "args.bin",
    "notes.json",
    "LICENSE.bin",
    "NOTICE.py",
]


@pytest.fixture
def folder(tmp_path):
    folder = single_file(tmp_path / "model")
    for name in COPIED + LEFT:
        (folder / name).write_text(name)
    return folder


def names(folder, **options):
    return [str(path.relative_to(folder)) for path in Checkpoint.open(folder).side_files(**options)]


def test_only_what_belongs_to_the_output(folder):
    assert names(folder) == sorted(COPIED)


def test_remote_code_only_when_asked_for(folder):
    assert set(names(folder, remote_code=True)) - set(COPIED) == {"modeling_x.py", "NOTICE.py"}


def test_additional_chat_templates_keep_their_folder(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    (folder / "additional_chat_templates" / "other.txt").write_text("x")
    assert set(names(folder)) - set(COPIED) == {"additional_chat_templates/tools.jinja"}


def test_folders_are_passed_over(folder):
    (folder / "LICENSES").mkdir()
    assert names(folder) == sorted(COPIED)


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/x.jinja"])
def test_a_link_to_a_secret_is_refused(folder, tmp_path, name):
    (tmp_path / "secret").write_text("key")
    (folder / "additional_chat_templates").mkdir()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside the model folder"):
        names(folder)


def test_a_linked_template_folder_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jinja").write_text("key")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside the model folder"):
        names(folder)


def test_a_pipe_is_refused(folder):
    (folder / "merges.txt").unlink()
    os.mkfifo(folder / "merges.txt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        names(folder)
