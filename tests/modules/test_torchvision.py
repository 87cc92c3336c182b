"""Networks of torchvision at their real size, where it is installed (the extra ``vision``)."""

import pytest
import torch

from llmfold import fold_module, plan_module

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed: it is an extra")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "couplings"), [("resnet18", 12), ("resnet50", 37), ("vgg11_bn", 10)])
def test_networks_are_planned_folded_and_run(name: str, couplings: int) -> None:
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None).eval()
    example = torch.randn(2, 3, 224, 224)
    plan = plan_module(network, (example,), 0.3)
    assert len(plan.couplings.found) == couplings
    narrower = fold_module(network, (example,), 0.3, method="magnitude-l2")
    after = sum(parameter.numel() for parameter in narrower.parameters())
    assert after == plan.after == pytest.approx(0.7 * plan.before, rel=0.01)
    with torch.inference_mode():
        assert narrower(example).isfinite().all()
