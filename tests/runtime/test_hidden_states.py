"""Tensors that lie in files of the work folder."""

from pathlib import Path

import pytest
import torch

from llmfold import OutputError
from llmfold.runtime import hidden_states as states
from llmfold.runtime.hidden_states import mapped, mapped_tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mapped_tensor_lies_in_its_file(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"left by another run")
    tensor = mapped_tensor(path, (3, 5), dtype)
    tensor.copy_(torch.arange(15, dtype=dtype).view(3, 5))
    assert path.stat().st_size == 15 * dtype.itemsize
    assert torch.equal(torch.from_file(str(path), size=15, dtype=dtype), torch.arange(15, dtype=dtype))


def test_a_new_file_of_a_name_leaves_the_old_tensor_alone(tmp_path: Path) -> None:
    first = mapped_tensor(tmp_path / "cache", (4,), torch.float32).fill_(1)
    mapped_tensor(tmp_path / "cache", (4,), torch.float32).fill_(2)
    assert first.eq(1).all()


def test_what_has_no_room_on_the_disk_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "free_bytes", lambda _: 100)
    for make in (lambda p: mapped(p, (26,)), lambda p: mapped_tensor(p, (26,), torch.float32)):
        with pytest.raises(OutputError, match="free 4 bytes"):
            make(tmp_path / "states")
        assert not (tmp_path / "states").exists()
