"""Documents that a model writes by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import SINGLE, edit_json, edit_tensors, file_hashes, fold, sample_tokens, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmfold import CheckpointError
from llmfold.data import sampling as sampling_module
from llmfold.data import tokens as tokens_module
from llmfold.data.beginnings import PLAIN, UNSET, Beginnings, Mixture, starts
from llmfold.data.sampling import Sampler, Sampling, cache_bytes, draw, strewn
from llmfold.data.tokens import TOKENS_FILE, TokenBudget
from llmfold.models.casting import load_model

CPU = torch.device("cpu")
WEIGHTS = (SINGLE, TOKENS_FILE)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gqa": ("llama", {}),
    "mqa": ("llama", {"num_key_value_heads": 1}),
    "long window": ("mistral", {"sliding_window": 32}),
    "short window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2 mixed": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
}


def sampled(model: Path, budget: TokenBudget, seed: int = 0, **options: Any) -> torch.Tensor:
    return sample_tokens(model, Sampling(budget, seed, **options))


def test_samples_begin_with_bos_and_depend_on_the_seed_only(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    budget = TokenBudget(4, 20)
    torch.manual_seed(5)
    first = sampled(model, budget)
    torch.manual_seed(6)
    assert torch.equal(first, sampled(model, budget))
    assert not torch.equal(first, sampled(model, budget, 1))
    assert first.shape == (4, 20)
    assert (first[:, 0] == 1).all()
    assert not first.is_inference()


def test_every_sampled_token_is_used(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    assert torch.equal(sampled(model, TokenBudget(8, 10, 2)).view(4, 20), sampled(model, TokenBudget(4, 20)))


@pytest.mark.parametrize("kind", KINDS)
def test_cached_steps_say_what_the_whole_text_says(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of every step are those of a pass over the whole document by stock transformers, without any cache."""
    family, overrides = KINDS[kind]
    model = tiny_model(tmp_path / "m", family, **overrides)
    steps: list[torch.Tensor] = []

    def watched(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        steps.append(logits)
        return draw(logits, *others)

    monkeypatch.setattr(sampling_module, "draw", watched)
    tokens = sampled(model, TokenBudget(3, 16))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model)(tokens, use_cache=False).logits
    torch.testing.assert_close(torch.stack(steps, 1), expected[:, :-1], rtol=1e-4, atol=1e-4)


def test_samples_follow_the_model(tmp_path: Path) -> None:
    """The second token's frequencies are the model's own probabilities: temperature 1, no top-k, no top-p."""
    model = tiny_model(tmp_path / "m", vocab_size=8)
    tokens = sampled(model, TokenBudget(4000, 2))[:, 1]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([[1]])).logits[0, -1].softmax(-1)
    found = torch.bincount(tokens, minlength=8) / 4000
    assert (found - expected).abs().max() < 0.03


def test_draws_invert_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.1, 0.0, 0.4, 0.5, 0.0]).log().clamp(min=-1e9)[None].repeat(6, 1)
    chances = torch.tensor([0.0, 0.099, 0.101, 0.499, 0.501, 1 - 2**-24])
    assert draw(logits, chances, torch.ones(6)).tolist() == [0, 0, 2, 2, 3, 3]
    temperatures = torch.tensor([1e-3, 1.0, 1e3]).repeat(2)
    assert draw(logits.clamp(min=-10), torch.full((6,), 0.3), temperatures).tolist() == [3, 2, 1] * 2


def test_a_share_of_the_tokens_are_random_words() -> None:
    tokens, words = torch.full((3000,), 7), torch.arange(100, 150)
    chances = torch.rand(3000, generator=torch.Generator().manual_seed(0))
    found = strewn(tokens, chances, 0.2, words)
    assert found.eq(7).float().mean() == pytest.approx(0.8, abs=0.03)
    assert found.unique().tolist() == [7, *words.tolist()]
    last = torch.tensor([0.2]).nextafter(torch.zeros(1))
    assert strewn(tokens[:1], last, 0.2, words).tolist() == [149]


def test_words_are_strewn_in_documents_that_folds_measure_on(data_dir: Path) -> None:
    folder = data_dir / "models" / "story-llama"
    sampler = Sampler(folder, load_model(folder, torch.float32, CPU))
    settings = AutoConfig.from_pretrained(folder)
    budget, inner = TokenBudget(16, 64), torch.tensor(Beginnings.of(folder, settings, settings).inner)
    shares = [sampler.sequences(Sampling(budget, 0, mixture=Mixture(strewn=s))) for s in (0.0, 0.9)]
    plain, full = (torch.isin(tokens[:, 2:], inner).float().mean() for tokens in shares)
    assert full > 0.85 > plain + 0.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_damaged_model_is_refused(tmp_path: Path, bad: float) -> None:
    model = tiny_model(tmp_path / "m")
    edit_tensors(model, lambda t: t["model.norm.weight"].__setitem__(0, bad))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        sampled(model, TokenBudget(2, 4))


def test_a_model_without_bos_begins_with_eos(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", "qwen2", bos_token_id=None, eos_token_id=7)
    assert (sampled(model, TokenBudget(2, 4))[:, 0] == 7).all()
    for name in ("config.json", "generation_config.json"):
        edit_json(model / name, eos_token_id=None)
    with pytest.raises(CheckpointError, match="neither bos_token_id nor eos_token_id"):
        sampled(model, TokenBudget(2, 4))


def test_a_new_document_begins_where_one_ends(tmp_path: Path) -> None:
    tokens = sampled(tiny_model(tmp_path / "m", vocab_size=8), TokenBudget(64, 64))
    ends = (tokens[:, :-1] == 2).nonzero()
    assert len(ends) > 10
    assert all(tokens[row, position + 1] == 1 for row, position in ends.tolist())


def test_another_document_begins_with_a_word_or_with_the_start_token() -> None:
    previous, chances = torch.tensor([2, 3, 9, 1]), torch.tensor([0.1, 0.9, 0.5, 0.5])
    worded, plain = Beginnings(start=1, ends=(2, 3), words=(10, 11)), Beginnings(start=1, ends=(2, 3))
    assert worded.following(previous, chances).tolist() == [10, 11, UNSET, UNSET]
    assert plain.following(previous, chances).tolist() == [1, 1, UNSET, UNSET]
    without_bos = Beginnings(start=2, ends=(2,))
    assert without_bos.following(torch.tensor([2, 9]), torch.zeros(2)).tolist() == [UNSET, UNSET]


def test_the_first_of_every_64_tokens_of_a_document_are_hotter() -> None:
    known, mixture = Beginnings(start=1, ends=(2, 3)), Mixture(burst=8, heat=1.5)
    document = [1, *range(10, 109), 2, *range(10, 30)]
    ages, found = torch.zeros(1, dtype=torch.int64), []
    for token in document:
        ages = known.ages(ages, torch.tensor([token]))
        found.append(mixture.heats(ages).item())
    hot = [place for place, heat in enumerate(found, 1) if heat == 1.5]
    assert hot == [*range(1, 8), *range(64, 72), *range(101, 108)]
    assert set(found) == {1.0, 1.5}
    assert PLAIN.heats(torch.arange(200)).eq(1).all()


def test_bursts_make_the_beginnings_of_documents_diverse(data_dir: Path) -> None:
    folder = data_dir / "models" / "story-llama"
    sampler = Sampler(folder, load_model(folder, torch.float32, CPU))
    mixtures = (PLAIN, Mixture(burst=8, heat=3.0))
    plain, hot = (sampler.sequences(Sampling(TokenBudget(64, 24), 0, mixture=mixture)) for mixture in mixtures)
    assert hot[:, 2:8].unique().numel() > 1.5 * plain[:, 2:8].unique().numel()
    assert hot[:, 16:].unique().numel() < 1.5 * plain[:, 16:].unique().numel()


def test_beginnings_are_mixed_in_their_shares() -> None:
    known = Beginnings(start=1, ends=(2, 3), words=tuple(range(10, 30)))

    def found(share: float, documents: range, seed: int = 0) -> torch.Tensor:
        return starts(known, Mixture(share), documents, torch.Generator().manual_seed(seed))

    prompts = found(0.5, range(3, 43))
    assert prompts[:, 0].tolist() == [2, 1] * 20
    assert prompts[1::2, 1].eq(UNSET).all()
    assert prompts[::2, 1].unique().numel() > 8
    assert prompts[::2, 1].ge(10).all()
    assert torch.equal(prompts, found(0.5, range(3, 43)))
    assert not torch.equal(prompts, found(0.5, range(3, 43), 1))
    assert found(0.0, range(40))[:, 0].eq(1).all()
    assert found(1.0, range(40))[:, 0].eq(2).all()
    assert found(0.25, range(40))[:, 0].eq(2).sum() == 10
    wordless = starts(Beginnings(1, (2,)), Mixture(1.0), range(4), torch.Generator())
    assert wordless.tolist() == [[1, UNSET]] * 4


def test_words_are_those_of_the_tokenizer(data_dir: Path) -> None:
    folder = data_dir / "models" / "stories260K"
    settings = AutoConfig.from_pretrained(folder)
    words = Beginnings.of(folder, settings, settings).words
    assert len(words) >= 10
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert all(tokenizer.decode([word]).strip()[0].isupper() for word in words)


def test_batches_are_even_and_bounded_by_the_cache(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_model(tmp_path / "m"))
    budget = TokenBudget(20, 4, 2)
    assert Sampling(budget, 0).batches(config) == [range(10)]
    limit = 4 * cache_bytes(config, 8) + 1
    assert Sampling(budget, 0, cache_limit=limit).batches(config) == [range(3), range(3, 6), range(6, 10)]
    assert len(Sampling(budget, 0, cache_limit=1).batches(config)) == 10


@pytest.mark.parametrize("family", ["llama", "RecurrentGemma"])
def test_a_batch_depends_on_its_number_only(tmp_path: Path, family: str) -> None:
    model = tiny_model(tmp_path / "m", family, num_hidden_layers=3)
    config = AutoConfig.from_pretrained(model)
    asked = Sampling(TokenBudget(12, 6, 2), 3, cache_limit=2 * cache_bytes(config, 12))
    batches = asked.batches(config)
    assert len(batches) == 3
    counted: list[int] = []
    last = Sampler(model, load_model(model, torch.float32, CPU)).sample(asked, 2, batches[2], counted.append)
    assert sum(counted) == 2 * 11
    assert torch.equal(sample_tokens(model, asked)[-4:].view(2, 12), last)
    assert torch.isin(last[:, 0], torch.tensor([1, 2])).all()


def test_keys_and_values_may_lie_in_files(tmp_path: Path) -> None:
    model, asked = tiny_model(tmp_path / "m"), Sampling(TokenBudget(8, 12), 3)
    caches = tmp_path / "caches"
    caches.mkdir()
    found = Sampler(model, load_model(model, torch.float32, CPU), caches).sequences(asked)
    assert torch.equal(found, sample_tokens(model, asked))
    config = AutoConfig.from_pretrained(model)
    sizes = [path.stat().st_size for path in sorted(caches.iterdir())]
    assert len(sizes) == 2 * config.num_hidden_layers  # keys and values of each
    assert sum(sizes) == 8 * cache_bytes(config, 12)


def test_a_killed_run_keeps_the_batches_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "m")
    monkeypatch.setattr(tokens_module, "BATCH", 4)
    options: dict[str, Any] = {"method": "self", "ratio": 0.25, "num_samples": 16, "sequence_length": 8, "refine": 0}
    fold(model, output=tmp_path / "whole", **options)
    sample = Sampler.sample
    numbers: list[int] = []

    def killed(self: Sampler, sampling: Sampling, index: int, *others: Any) -> torch.Tensor:
        numbers.append(index)
        if len(numbers) == 2:
            raise KeyboardInterrupt
        return sample(self, sampling, index, *others)

    monkeypatch.setattr(Sampler, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        fold(model, output=tmp_path / "out", **options)
    fold(model, output=tmp_path / "out", **options)
    assert numbers == [0, 1, 1]
    whole, out = (file_hashes(tmp_path / name) for name in ("whole", "out"))
    assert {name: whole[name] for name in WEIGHTS} == {name: out[name] for name in WEIGHTS}
