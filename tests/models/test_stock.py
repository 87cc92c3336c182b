"""Stock layers that are run one by one, against the whole model of transformers and against our own forward pass."""

import pytest
import torch
from reference_forward import attention_block, attention_heads, mlp_block, mlp_neurons, reference, rms_norm
from stock_models import WINDOW, Tiny, some_tokens, tiny_config, tiny_stock
from torch import Tensor

from llmfold.errors import CheckpointError
from llmfold.models import shape_of
from llmfold.models.context import Context
from llmfold.models.read_shape import stock_shape
from llmfold.models.stock import StockModel

FAMILIES = ("cohere", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama4_text", "mixtral", "olmo2", "opt", "phi3")
DESCRIBED = ("llama", "mistral", "qwen2", "qwen3")


def states_of(tiny: Tiny, tokens: Tensor) -> list[Tensor]:
    """States before every layer and after the last, streamed."""
    states = [tiny.shape.stock.embed(tiny.outside, tokens)]
    for index in range(len(tiny.shape.layers)):
        states.append(tiny.shape.stock.layer(index, tiny.layer(index), states[-1]))
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_layers_give_the_logits_of_the_whole_model(family: str) -> None:
    tiny, tokens = tiny_stock(family), some_tokens()
    assert tokens.shape[1] > WINDOW
    with torch.no_grad():
        expected = tiny.model(tokens, use_cache=False).logits
        found = tiny.shape.stock.logits(tiny.outside, states_of(tiny, tokens)[-1])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("family", DESCRIBED)
def test_streamed_layers_give_what_our_own_forward_pass_gives(family: str) -> None:
    """Layer by layer on the same states, as are what the heads and the neurons read and give."""
    tiny, tokens = tiny_stock(family), some_tokens()
    raw, context = tiny.config.to_dict(), Context(tiny.shape)
    own = reference(raw, shape_of(raw))
    with torch.no_grad():
        states = states_of(tiny, tokens)
        for index, x in enumerate(states[:-1]):
            weights, widths = tiny.layer(index), tiny.shape.layers[index]
            between = attention_block(x, weights, widths, own, index)
            normed, after = rms_norm(between, weights["post_norm"], own.eps), mlp_block(between, weights, own)
            neurons = mlp_neurons(normed, weights, own)
            heads = attention_heads(rms_norm(x, weights["input_norm"], own.eps), weights, widths, own, index)
            close(context.layer(x, weights, index), after)
            close(context.heads(x, weights, index), heads)
            inside, again = context.through(x, weights, index)
            close(again, after)
            (coupling,) = tiny.shape.couplings(widths).neurons
            given = context.mlp_inputs(inside, coupling, index)
            close(given, normed)
            close(coupling.neurons(given, coupling.view(weights, widths)), neurons)
            close(context.mlp_outputs(inside, coupling, index), after - between)
            for one, other in zip(context.consumed(x, weights, index), (heads, neurons, after), strict=True):
                close(one, other)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_every_sequence_is_streamed_as_if_alone() -> None:
    tiny, tokens = tiny_stock("gemma2"), some_tokens(3)
    with torch.no_grad():
        together = states_of(tiny, tokens)[-1]
        alone = torch.cat([states_of(tiny, row)[-1] for row in tokens[:, None]])
    close(alone, together)


def test_modules_are_watched_and_the_rest_of_a_layer_need_not_run() -> None:
    tiny = tiny_stock("phi3")
    stock, weights = tiny.shape.stock, tiny.layer(0)
    with torch.no_grad():
        x = stock.embed(tiny.outside, some_tokens())
        whole = stock.watched(0, weights, x, inputs=("mlp.down_proj",), outputs=("mlp",))
        part = stock.watched(0, weights, x, inputs=("self_attn.o_proj",), stop=True)
    assert whole.after is not None
    assert torch.equal(whole.after, stock.layer(0, weights, x))
    (neurons,) = whole.inputs["mlp.down_proj"]
    close(neurons @ weights["down"].T, whole.outputs["mlp"])
    assert part.after is None
    assert part.inputs["self_attn.o_proj"][0].shape == (2, 12, 32)


@pytest.mark.parametrize("family", ["gemma2", "opt"])
def test_logits_are_differentiable_in_the_states_and_widen_a_stored_head(family: str) -> None:
    tiny = tiny_stock(family)
    half = {name: tensor.bfloat16() for name, tensor in tiny.outside.items()}
    wide = {name: tensor.float() for name, tensor in half.items()}
    found = []
    for outside in (half, wide):
        x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        logits = tiny.shape.stock.logits(tiny.shape.stock.widened(outside), x)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        found.append((logits.detach(), gradient))
    assert found[0][1].abs().min() > 0
    for one, other in zip(*found, strict=True):
        close(one, other)
    generator = torch.Generator().manual_seed(0)
    x, direction = (torch.randn(1, 4, 32, generator=generator) for _ in range(2))
    with torch.no_grad():
        up, down = (tiny.shape.stock.logits(wide, x + s * direction).double().square().sum() for s in (0.01, -0.01))
    assert float(up - down) / 0.02 == pytest.approx(float((found[1][1] * direction).sum()), rel=0.02)


def test_parameters_are_on_no_device_and_buffers_are_computed() -> None:
    stock: StockModel = tiny_stock("gpt_neox").shape.stock
    assert stock.parameters.keys() == tiny_stock("gpt_neox").tensors.keys()
    modules = [stock.model, *stock.layers]
    assert {p.device.type for module in modules for p in module.parameters()} == {"meta"}
    assert {b.device.type for module in modules for b in module.buffers()} == {"cpu"}


def test_layers_that_depend_on_more_than_hidden_states_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"hand on more than hidden states.*cannot fold them one by one"):
        stock_shape(tiny_config("gemma3n_text"))
