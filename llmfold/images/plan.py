"""From a ratio to what becomes of an image model: widths that its stock class takes, where there are any."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llmfold.errors import UsageError
from llmfold.images.config import ImageConfig
from llmfold.images.measuring import check_measures, repair_of
from llmfold.images.model import ImageModel
from llmfold.images.program import PROGRAM_FILE
from llmfold.images.stock import state_shapes
from llmfold.images.widths import Key, StockWidths, Value, stock_widths, width_keys
from llmfold.modules.plan import ModulePlan, by_parameters, narrowed_shapes, uniform

_BISECTIONS = 12
"""Enough for widths of some thousands: each builds the stock class."""


@dataclass(frozen=True, eq=False)
class ImagePlan:
    """What would become of an image model.

    Attributes:
        config: the options.
        image_class: name of its stock class.
        module: widths of couplings, parameters, what is kept and why.
        raw: config.json that is written.
        changed: by path of a key of it, its value before and after.
        repair: in force.
        stock: whether the stock class holds the widths; else the output is weights with a program of torch.export.
        bytes_before: of all tensors.
        bytes_after: likewise.
    """

    config: ImageConfig
    image_class: str
    module: ModulePlan
    raw: Mapping[str, Any]
    changed: Mapping[str, tuple[Value, Value]]
    repair: str
    stock: bool
    bytes_before: int
    bytes_after: int

    @property
    def ratio(self) -> float:
        """Fraction of all parameters that goes."""
        return 1 - self.module.after / self.module.before

    @property
    def bytes_written(self) -> int:
        """Of the output: the weights, and where there is a program beside them, those in float32 once more."""
        return self.bytes_after + (0 if self.stock else torch.float32.itemsize * self.module.after)

    @property
    def loading_note(self) -> str:
        """How the output is loaded where its stock class does not hold the widths."""
        return (
            f"the config of {self.image_class} cannot say these widths, so that no stock class loads the weights: "
            f"torch.export.load('{PROGRAM_FILE}').module() computes the model, in float32"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as report.json holds it."""
        return {
            "image_class": self.image_class,
            "stock": self.stock,
            "repair": self.repair,
            "parameters": {"before": self.module.before, "after": self.module.after},
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "ratio": self.ratio,
            "config": {path: {"before": a, "after": b} for path, (a, b) in self.changed.items()},
            "couplings": [
                {"name": c.name, "before": c.units, "after": self.module.widths[c.name]}
                for c in self.module.couplings.found
            ],
            "kept": dict(self.module.couplings.kept),
        }


def plan_image(model: ImageModel, config: ImageConfig) -> ImagePlan:
    """Plan the fold of an image model.

    Raises:
        UsageError: nothing can be narrowed, or not by so much.
    """
    check_measures(model, config)
    couplings, shapes = model.couplings, state_shapes(model.module)
    named = {name for name, _ in model.module.named_parameters()}
    held = _held(model, config, named)
    widths = dict(held.widths) if held else _any_widths(model, config, named)
    after = narrowed_shapes(couplings.found, shapes, widths)

    def count(sizes: Mapping[str, tuple[int, ...]]) -> int:
        return sum(math.prod(size) for name, size in sizes.items() if name in named)

    def nbytes(sizes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
        tensors = model.module.state_dict()
        each = {n: dtype.itemsize if t.is_floating_point() else t.itemsize for n, t in tensors.items()}
        return sum(math.prod(size) * each[name] for name, size in sizes.items())

    raw = dict(held.raw if held else model.raw)
    written = model.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    return ImagePlan(
        config,
        model.kind.__name__,
        ModulePlan(couplings, widths, count(shapes), count(after)),
        raw,
        {path: values for path, values in held.changed.items() if values[0] != values[1]} if held else {},
        repair_of(model, config),
        held is not None,
        nbytes(shapes, model.dtype),
        nbytes(after, written),
    )


def _held(model: ImageModel, config: ImageConfig, named: set[str]) -> StockWidths | None:
    """Widths by the ratio that the stock class holds, None where its config has no keys for them.

    Raises:
        UsageError: it has keys, and none of its models are small enough.
    """
    if not (config.ratio or model.heads):
        return stock_widths(model, [], 0.0)
    keys = width_keys(model)
    if not keys and model.heads:
        raise UsageError(
            f"--attention-ratio {model.heads:g}: {model.kind.__name__} takes no fewer heads of the same width by its "
            "config, or none would go; leave it out"
        )
    if not keys:
        return None
    if config.ratio_of == "parameters":
        return _by_parameters(model, keys, config.ratio, named)
    found = stock_widths(model, keys, config.ratio)
    if found is None:
        raise UsageError(
            f"{model.kind.__name__} builds no model that is smaller by --ratio {config.ratio:g}: choose a smaller one"
        )
    return found


def _by_parameters(model: ImageModel, keys: list[Key], ratio: float, named: set[str]) -> StockWidths:
    """The widest by one fraction of all keys with at most so many parameters.

    Raises:
        UsageError: the narrowest has more.
    """
    shapes = {name: shape for name, shape in state_shapes(model.module).items() if name in named}
    dense = sum(map(math.prod, shapes.values()))
    wanted, least = (1 - ratio) * dense, dense

    def tried(fraction: float) -> tuple[StockWidths | None, int]:
        found = stock_widths(model, keys, fraction)
        size = narrowed_shapes(model.couplings.found, shapes, found.widths) if found else shapes
        return found, sum(map(math.prod, size.values()))

    found, count = tried(0.0)
    if found is not None and count <= wanted:
        return found
    low, high, best = 0.0, 1.0, None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found, count = tried(middle)
        least = min(least, count)
        if found is None or count > wanted:
            low = middle
        else:
            high, best = middle, found
    if best is None:
        raise UsageError(
            f"--ratio {ratio:g} is more than the channels and neurons that can go from {model.kind.__name__}: "
            f"{1 - least / dense:.2f} of its parameters at most; choose a smaller one"
        )
    return best


def _any_widths(model: ImageModel, config: ImageConfig, named: set[str]) -> dict[str, int]:
    """Widths of each coupling by itself."""
    found = model.couplings.found
    if config.ratio_of == "channels":
        return uniform(found, config.ratio)
    tensors = {name: tensor for name, tensor in model.module.state_dict().items() if name in named}
    return by_parameters(found, tensors, (1 - config.ratio) * sum(t.numel() for t in tensors.values()))
