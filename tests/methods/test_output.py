"""The end of the model, in blocks of the vocabulary, against plain products."""

import pytest
import torch

from llmfold.methods import output as end
from llmfold.methods.output import Output


@pytest.mark.parametrize("block", [7, 16, 100])
def test_blocks_of_the_vocabulary_do_not_change_the_result(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end, "_VOCABULARY_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(30, 6, generator=generator).bfloat16()
    rows, weights = torch.randn(5, 6, generator=generator), torch.rand(5, 30, generator=generator)
    made = Output(torch.ones(6), table, 1e-6)
    torch.testing.assert_close(made.logits(rows), rows @ table.float().T)
    torch.testing.assert_close(made.back(weights), weights @ table.float())
    wide = table.double()
    torch.testing.assert_close(made.second_moment(weights[0]), wide.T @ torch.diag(weights[0].double()) @ wide)
