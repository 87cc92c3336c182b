from pathlib import Path

import pytest
import torch
from support import edit_tensors, sample_tokens, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmfold import CheckpointError, UsageError
from llmfold.data.sampling import Sampling
from llmfold.data.tokens import TokenBudget
from llmfold.evaluation import fidelity as module
from llmfold.evaluation.fidelity import Fidelity, fidelity, held_back_tokens, reference
from llmfold.evaluation.loading import Loading, opened


def measured(dense: Path, model: Path, tokens: Tensor, batch: int = 3) -> Fidelity:
    with opened(dense, Loading()) as loaded:
        known = reference(dense, loaded, tokens, batch=batch)
    with opened(model, Loading()) as loaded:
        return fidelity(known, loaded, batch=batch)


def held_back(folder: Path, tokens: int, length: int) -> Tensor:
    with opened(folder, Loading()) as model:
        return held_back_tokens(folder, model, tokens=tokens, length=length)


def log_probabilities(folder: Path, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"family": "qwen2"}])
def test_equals_the_definition(tmp_path: Path, options: dict[str, bool | str]) -> None:
    dense, model = (tiny_model(tmp_path / str(seed), seed=seed, **options) for seed in (1, 2))
    tokens = torch.randint(0, 64, (7, 20), generator=torch.Generator().manual_seed(0))
    p, q = log_probabilities(dense, tokens), log_probabilities(model, tokens)
    found = measured(dense, model, tokens)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert (found.tokens, found.sequences) == (140, 7)


def test_a_model_is_faithful_to_itself(session_model: Path) -> None:
    tokens = held_back(session_model, 400, 50)
    found = measured(session_model, session_model, tokens)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1


def test_layer_errors_are_those_of_the_hidden_states(tmp_path: Path) -> None:
    dense, model = (tiny_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    tokens = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    found = measured(dense, model, tokens)
    with torch.inference_mode():
        old, new = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            .eval()(tokens, output_hidden_states=True)
            .hidden_states
            for folder in (dense, model)
        )
    first = float((new[1] - old[1]).square().sum() / old[1].square().sum())  # the last of them is normalised
    assert found.layer_errors[0] == pytest.approx(first, rel=1e-4)
    assert len(found.layer_errors) == 2
    assert list(measured(dense, dense, tokens).layer_errors) == [0.0, 0.0]


def test_held_back_tokens_are_sampled_anew_but_always_the_same(session_model: Path) -> None:
    tokens = held_back(session_model, 400, 50)
    assert tokens.shape == (8, 50)
    assert torch.equal(tokens, held_back(session_model, 400, 50))
    folded_with = sample_tokens(session_model, Sampling(TokenBudget(8, 50, 2), 0))
    assert not torch.equal(tokens, folded_with)


def test_sequences_are_as_long_as_the_model_allows(session_model: Path) -> None:
    assert held_back(session_model, 300, 256).shape == (2, 128)


def test_sequences_begin_anywhere_in_documents(session_model: Path) -> None:
    begins = held_back(session_model, 1024, 16)[:, 0]
    assert (begins[::2] == 1).any()  # documents begin at every other of them
    assert len(begins[1::2].unique()) > 8


def test_each_model_runs_once(session_model: Path) -> None:
    """The hidden states after the layers come from the pass that gives the logits."""
    tokens, passes = torch.ones(4, 5, dtype=torch.int64), []
    with opened(session_model, Loading()) as model:
        model.base_model.register_forward_hook(lambda *_: passes.append(1))
        known = reference(session_model, model, tokens, batch=2)
        found = fidelity(known, model, batch=2)
    assert len(passes) == 4
    assert [layer.shape for layer in known.layers] == [(4, 5, 32)] * 2
    assert found.layer_errors == [0.0, 0.0]


def test_logits_are_compared_a_few_positions_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, model = (tiny_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    tokens = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    at_once = measured(dense, model, tokens)
    monkeypatch.setattr(module, "_LOGIT_BYTES", 7 * 4 * 64)
    assert measured(dense, model, tokens).kl == pytest.approx(at_once.kl, rel=1e-6)


def test_another_vocabulary_is_refused(tmp_path: Path, session_model: Path) -> None:
    other = tiny_model(tmp_path / "other", vocab_size=80)
    with pytest.raises(UsageError, match=r"vocabulary \(64 and 80 tokens\)"):
        measured(session_model, other, torch.ones(2, 5, dtype=torch.int64))


def test_nan_has_no_divergence(tmp_path: Path, session_model: Path) -> None:
    broken = tiny_model(tmp_path / "broken")
    edit_tensors(broken, lambda t: t["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="NaN"):
        measured(session_model, broken, torch.ones(2, 5, dtype=torch.int64))
