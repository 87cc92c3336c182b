"""Small networks with the shapes of known ones, and every way of tying channels; random weights and statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def settled(network: nn.Module, seed: int = 0) -> nn.Module:
    """A network with random parameters, and running statistics that no two channels share."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert isinstance(norm.running_mean, Tensor)
                assert isinstance(norm.running_var, Tensor)
                norm.weight.add_(1)
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.2)
                norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
    return network.eval()


class Pad(nn.Module):
    """A shortcut of option A."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 6))


class Block(nn.Module):
    """A basic block, or with ``bottleneck`` one of three convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool, pad: bool) -> None:
        super().__init__()
        inner = outputs // 2 if bottleneck else outputs
        size, moved = (1, 1) if bottleneck else (3, stride)
        self.conv1 = nn.Conv2d(inputs, inner, size, moved, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner if bottleneck else outputs, 3, stride if bottleneck else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner if bottleneck else outputs)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False) if bottleneck else None
        self.bn3 = nn.BatchNorm2d(outputs) if bottleneck else None
        if inputs == outputs and stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        elif pad:
            self.shortcut = Pad()
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Two stages of 8 and 16 channels."""

    def __init__(self, *, bottleneck: bool = False, pad: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(*(Block(8, 8, 1, bottleneck, pad) for _ in range(2)))
        self.layer2 = nn.Sequential(Block(8, 16, 2, bottleneck, pad), Block(16, 16, 1, bottleneck, pad))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(self.layer2(self.layer1(x)), 1)
        return self.head(torch.flatten(x, 1))


def vgg() -> nn.Module:
    """VGG with BatchNorm: pixels are flattened into a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(4)),
        *(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 10)),
    )


class Branches(nn.Module):
    """Depthwise and grouped convolutions, a concatenation, a gate of squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(12)
        self.narrow, self.wide = nn.Conv2d(20, 4, 1), nn.Conv2d(4, 20, 1)
        self.last = nn.Conv2d(20, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.depthwise(F.silu(self.stem(x))))
        x = torch.cat((F.relu(self.norm(self.grouped(x))), x), 1)
        gate = torch.sigmoid(self.wide(F.relu(self.narrow(x.mean((2, 3), keepdim=True)))))
        return self.head(F.relu(self.last(x * gate)).mean((2, 3)))


class Mixer(nn.Module):
    """LayerNorm over channels that are last, and an MLP beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


NETWORKS = {
    "basic": lambda: ResNet(),
    "padded": lambda: ResNet(pad=True),
    "bottleneck": lambda: ResNet(bottleneck=True),
    "vgg": vgg,
    "branches": Branches,
    "mixer": Mixer,
}


def network(name: str) -> nn.Module:
    """One of them."""
    return settled(NETWORKS[name]())  # type: ignore[no-untyped-call]
