"""Couplings of traced modules: what ties channels, what keeps them, and units planted twice."""

import pytest
import torch
from modules.networks import IMAGES, NETWORKS, Branches, network, settled
from torch import Tensor, nn

from llmfold.errors import UsageError
from llmfold.modules.coupling import ChannelCoupling, Couplings
from llmfold.modules.narrow import tensors_of, with_tensors
from llmfold.modules.probe import confirmed, folds_exactly
from llmfold.modules.projection import with_projections
from llmfold.modules.trace import couplings_of

INPUTS = (IMAGES[:2],)


def couplings(module: nn.Module) -> Couplings:
    return couplings_of(with_projections(module, INPUTS), INPUTS)


def named(found: Couplings) -> dict[str, ChannelCoupling]:
    return {coupling.name: coupling for coupling in found.found}


@pytest.mark.parametrize("name", NETWORKS)
def test_units_planted_twice_fold_exactly(name: str) -> None:
    module = with_projections(network(name), INPUTS)
    found = couplings(module).found
    assert found
    wide = module.double()
    assert folds_exactly(wide, found, (INPUTS[0].double(),))


def test_an_addition_ties_the_channels_of_a_stage() -> None:
    found = named(couplings(network("basic")))
    makers = {slot.tensor for slot in found["conv1"].of_kind("producer")}
    assert makers == {"conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv2.weight"}
    readers = {slot.tensor for slot in found["conv1"].of_kind("consumer")}
    assert readers >= {"layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer2.0.shortcut.0.weight"}
    assert found["layer1.0.conv1"].units == 8


def test_a_padded_shortcut_is_a_projection_that_gives_the_same_bits() -> None:
    module = network("padded")
    projected = with_projections(module, INPUTS)
    assert torch.equal(projected(IMAGES), module(IMAGES))
    found = named(couplings(module))
    assert found["conv1"].units == 8
    assert found["layer2.0.conv2"].units == 16
    assert "projection0.weight" in {slot.tensor for slot in found["layer2.0.conv2"].of_kind("producer")}
    assert "projection0.weight" in {slot.tensor for slot in found["conv1"].of_kind("consumer")}


def test_flattened_pixels_belong_to_their_channel() -> None:
    found = named(couplings(network("vgg")))
    reader = next(slot for slot in found["4"].slots if slot.tensor == "9.weight")
    assert reader.index.tolist() == [[4 * unit + pixel for pixel in range(4)] for unit in range(12)]


def test_places_of_a_group_are_units_and_a_concatenation_shares_its_reader() -> None:
    found = named(couplings(settled(Branches())))
    assert found["stem"].units == 4  # two groups of four channels, tied place by place
    assert found["grouped"].units == 6
    shared = {slot.tensor for slot in found["stem"].of_kind("consumer")}
    assert shared & {slot.tensor for slot in found["grouped"].of_kind("consumer")} == {"narrow.weight", "last.weight"}


def test_what_normalises_over_channels_keeps_them() -> None:
    found = couplings(network("mixer"))
    assert [coupling.name for coupling in found.found] == ["up"]
    assert "layer_norm" in found.kept["patches"]
    assert "output" in found.kept["head"]


def test_disturbing_a_unit_moves_its_own_inputs_of_a_reader_and_no_others() -> None:
    module = network("bottleneck")
    for coupling in couplings(module).found:
        inner = coupling.name.endswith(("conv1", "conv2")) and coupling.name.startswith("layer")
        if not inner:
            continue
        slot = coupling.of_kind("consumer")[0]
        reader = slot.tensor.rpartition(".")[0]
        before = read(module, reader)
        tensors = tensors_of(module)
        for part in coupling.of_kind("producer"):
            values = part.read(tensors[part.tensor]).clone()
            values[3] *= -1.5
            tensors[part.tensor] = part.write(tensors[part.tensor], values)
        moved = (read(with_tensors(module, tensors), reader) - before).abs().amax((0, 2, 3)) > 0
        assert moved.nonzero().flatten().tolist() == slot.index[3].tolist(), coupling.name


def read(module: nn.Module, path: str) -> Tensor:
    seen: list[Tensor] = []
    hook = module.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(IMAGES)
    hook.remove()
    return seen[0]


def test_a_coupling_that_is_not_what_is_computed_is_kept_by_the_probe() -> None:
    module = network("basic")
    true = couplings(module)
    lacking = true.found[0]
    wrong = ChannelCoupling(lacking.name, lacking.units, tuple(s for s in lacking.slots if s.tensor != "bn1.bias"))
    found = confirmed(module, Couplings((wrong, *true.found[1:]), true.kept), INPUTS)
    assert [coupling.name for coupling in found.found] == [coupling.name for coupling in true.found[1:]]
    assert "planted" in found.kept[lacking.name]


class Halved(nn.Module):
    """Half of the channels meet those of another convolution, half do not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.head(torch.cat((y[:, :4] + self.other(x), y[:, 4:]), 1))


class Branching(nn.Module):
    """Looks at a value, which no trace can."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_width_that_is_written_into_the_code_is_kept() -> None:
    module = settled(Halved())
    traced = couplings_of(module, INPUTS)
    assert [(coupling.name, coupling.units) for coupling in traced.found] == [("one", 4), ("one#2", 4)]
    found = confirmed(module, traced, INPUTS)
    assert [coupling.name for coupling in found.found] == ["one#2"]  # what is sliced to its end follows any width
    assert "planted" in found.kept["one"]


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(UsageError, match=r"torch\.export cannot trace"):
        couplings_of(Branching(), INPUTS)
