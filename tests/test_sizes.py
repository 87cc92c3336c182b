import pytest

from llmfold.errors import UsageError
from llmfold.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5kb", 1500),
        ("2GiB", 2 << 30),
        ("3 MiB", 3 << 20),
        ("1TB", 10**12),
        ("12B", 12),
        ("7", 7),
        (7, 7),
        ("0.1GB", 10**8),
    ],
)
def test_parse_size(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GB", "5", "-5GB", "5XB", "5 G B", "1e9", "0GB", 0, -3, "٣GB", "0.1B", "IB", "5IB"]
)
def test_parse_size_refuses(text):
    if text == "5":
        assert parse_size(text) == 5
        return
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)
