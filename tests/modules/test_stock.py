"""Image models of transformers: what is found in them, units planted twice, and loading in the stock class."""

from typing import Any

import pytest
import torch
from support import ROOT
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import llmfold
from llmfold.modules.probe import folds_exactly, outputs
from llmfold.modules.trace import couplings_of

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}


def model(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit":
        made: nn.Module = ViTForImageClassification(ViTConfig(**{**TOWER, **changes}, image_size=32, patch_size=8))
    elif name == "clip":
        made = CLIPVisionModel(CLIPVisionConfig(**{**TOWER, **changes}, image_size=32, patch_size=8))
    else:
        made = ResNetForImageClassification(ResNetConfig(**{**STAGES, **changes}, num_labels=5))
    return made.eval()


@pytest.mark.parametrize("name", ["vit", "clip", "resnet"])
def test_units_planted_twice_fold_exactly_and_only_what_is_free_is_found(name: str) -> None:
    module = model(name)
    found = couplings_of(module, (X,))
    if name == "resnet":
        assert {coupling.units for coupling in found.found} == {8, 16}
    else:
        assert [(coupling.units, coupling.heads) for coupling in found.found] == [(2, True), (24, False)] * 2
        assert ["mlp" in coupling.name for coupling in found.found] == [False, True] * 2
    assert folds_exactly(module.double(), found.found, (X.double(),))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_narrower_model_loads_in_the_stock_class(name: str) -> None:
    module = model(name)
    folded = llmfold.fold_module(module, (X,), 0.25, ratio_of="channels", method="paper")
    changes: dict[str, Any] = {"intermediate_size": 18}
    if name == "resnet":
        changes = {"embedding_size": 6, "hidden_sizes": [6, 12]}
    stock = model(name, **changes)
    stock.load_state_dict(folded.state_dict())
    with torch.no_grad():
        given, wanted = outputs(stock, (X,)), outputs(folded, (X,))
    assert all(torch.equal(one, other) for one, other in zip(given, wanted, strict=True))
    assert isinstance(given[0], Tensor)


@pytest.mark.parametrize("method", ["self", "paper", "magnitude-l2"])
def test_heads_go_where_they_are_asked_for(method: llmfold.modules.fold.Method) -> None:
    module = model("vit", num_attention_heads=4)
    kept = llmfold.plan_module(module, (X,), 0.25, ratio_of="channels").couplings.kept
    assert sum("heads of an attention" in why for why in kept.values()) == 2
    folded = llmfold.fold_module(module, (X,), 0.25, ratio_of="channels", method=method, heads=True)
    stock = model("vit", num_attention_heads=3, head_dim=4, intermediate_size=18)
    stock.load_state_dict(folded.state_dict())
    with torch.no_grad():
        given, wanted = outputs(stock, (X,)), outputs(folded, (X,))
    assert torch.equal(given[0], wanted[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_network_of_real_size_is_planned_folded_and_loaded_in_the_stock_class(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import image_networks

    torch.manual_seed(0)
    build = getattr(image_networks, name)
    module = build().eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plan = llmfold.plan_module(module, (images,), 0.25, ratio_of="channels")
    assert len(plan.couplings.found) == {"resnet18": 12, "resnet50": 37}[name]
    assert set(plan.couplings.kept) == {"classifier.1"}
    folded = llmfold.fold_module(module, (images,), 0.25, ratio_of="channels", method="paper")
    assert sum(parameter.numel() for parameter in folded.parameters()) == plan.after
    sizes = [size * 3 // 4 for size in module.config.hidden_sizes]
    stock = build(embedding_size=48, hidden_sizes=sizes).eval()
    stock.load_state_dict(folded.state_dict())
    with torch.no_grad():
        scores = stock(images).logits
        assert torch.equal(scores, folded(images).logits)
    assert bool(scores.isfinite().all())


@pytest.mark.slow
def test_vgg11_of_real_convolutions_is_folded_by_measured_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import image_networks

    torch.manual_seed(0)
    module = image_networks.Vgg11Bn(hidden=64).eval()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    folded = llmfold.fold_module(module, (images,), 0.3, method="paper", repair="statistics", inputs=images)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (module, folded))
    assert 0.68 * before < after <= 0.7 * before
    with torch.no_grad():
        assert bool(folded(images).isfinite().all())
