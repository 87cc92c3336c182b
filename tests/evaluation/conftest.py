"""What tests of measurements share."""

from multiprocessing import get_context

import pytest

from llmfold.evaluation import workers


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have models timed in forks of this process, which need not import anything first."""
    monkeypatch.setattr(workers, "get_context", lambda _: get_context("fork"))
