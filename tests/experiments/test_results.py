"""Runs that a file of results holds are checked."""

from typing import Any

import pytest

from llmfold.experiments.results import Run, _checked


@pytest.mark.parametrize("wrong", [{"top1": {}}, {"kl": []}, {"seed": "0"}, {"amount": {"ratio": None}}, {"data": 1}])
def test_what_is_no_number_or_text_is_refused(wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"key": "k", "method": "paper", "amount": {"ratio": 0.2}, "seed": 0}
    assert _checked(Run(**fields)) == Run(**fields)
    with pytest.raises(TypeError, match="something else"):
        _checked(Run(**{**fields, **wrong}))
