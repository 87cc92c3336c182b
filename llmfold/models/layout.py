"""Between the names in a checkpoint's files and the parameters of the stock model, by transformers' own table.

Transformers renames, fuses and stacks tensors when it loads a checkpoint, and undoes it when it saves one. Here it is
done for a few tensors at a time, by the same rules, so that an output keeps the names and the layout of its source.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from llmfold.errors import CheckpointError, UsageError
from llmfold.models import refusals

Shapes = Mapping[str, tuple[int, ...]]
ReadPart = Callable[[str, range | None], Tensor]
"""Gives a stored tensor, or some entries of its first axis."""


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint that are converted together.

    Attributes:
        stored: their names in the files, each with the pattern that it matches.
        target: the parameter they become, or the first of several.
        converter: what makes parameters of them; None where a name changes at most.
        parameters: all that they become, with their shapes.
    """

    stored: tuple[tuple[str, str], ...]
    target: str
    converter: Any | None
    parameters: dict[str, tuple[int, ...]]


class Layout:
    """How the tensors of a checkpoint become the parameters of a model."""

    def __init__(self, model: PreTrainedModel, parameters: Shapes, stored: Shapes) -> None:
        """Find out which tensors become which parameters; ``stored`` is kept.

        Args:
            model: the stock model.
            parameters: names and shapes of its parameters.
            stored: names and shapes of the checkpoint's tensors.

        Raises:
            CheckpointError: a parameter has no tensor, a tensor has no place, or shapes differ.
        """
        self._model, self.stored = model, dict(stored)
        transforms = get_model_conversion_mapping(model)
        renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
        meta = {name: torch.empty(size, device="meta") for name, size in parameters.items()}
        collected: dict[str, tuple[Any | None, list[tuple[str, str]]]] = {}
        for name in sorted(stored, key=_natural):
            target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, meta)
            if target not in meta and name in meta:
                target, pattern = name, None
            if target not in meta:
                raise refusals.not_part(name, type(model).__name__)
            converter = None if pattern is None else by_pattern[pattern]
            collected.setdefault(target, (converter, []))[1].append((name, pattern or name))
        self._conversions = [each for each in transforms if each.was_used()]
        self.groups = [self._group(target, *each, stored) for target, each in collected.items()]
        self._under: dict[str, list[Group]] = {}
        for group in self.groups:
            for end in (i for i, letter in enumerate(group.target) if letter == "."):
                self._under.setdefault(group.target[:end], []).append(group)
        self._by_parameter = {name: group for group in self.groups for name in group.parameters}
        self._check(parameters)

    def _group(self, target: str, converter: Any | None, names: list[tuple[str, str]], stored: Shapes) -> Group:
        group = Group(tuple(names), target, converter, {})
        try:
            made = self.load([group], lambda name: torch.empty(stored[name], device="meta"))
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(
                f"the {len(names)} tensors that make up {target}, the first of them {names[0][0]}, do not fit "
                "together: one is missing or of the wrong shape; download them again"
            ) from error
        return replace(group, parameters={name: tuple(tensor.shape) for name, tensor in made.items()})

    def _check(self, parameters: Shapes) -> None:
        for name, group in self._by_parameter.items():
            if group.parameters[name] != parameters.get(name):
                raise CheckpointError(
                    f"tensor {group.stored[0][0]} gives {name} the shape {list(group.parameters[name])} but "
                    f"config.json implies {list(parameters.get(name, ()))}: correct its sizes, or "
                    "download the model again"
                )

    def under(self, path: str) -> Sequence[Group]:
        """Groups of the parameters under a path."""
        return self._under.get(path, ())

    def missing(self, parameters: Iterable[str]) -> list[str]:
        """Those of some parameters that no tensor becomes."""
        return [name for name in parameters if name not in self._by_parameter]

    def load(self, groups: Iterable[Group], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Parameters of some groups, by name; ``read`` gives a stored tensor."""
        made: dict[str, Tensor] = {}
        for group in groups:
            if group.converter is None:
                made[group.target] = read(group.stored[-1][0])
                continue
            made |= self._convert(group, ((name, pattern, read(name)) for name, pattern in group.stored))
        return made

    def _convert(self, group: Group, tensors: Iterable[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
        converter = deepcopy(group.converter)
        assert converter is not None
        for name, pattern, tensor in tensors:
            converter.add_tensor(group.target, name, pattern, tensor)
        values = converter.convert(group.target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in values.items()}

    def can_part(self, group: Group, experts: int) -> bool:
        """Whether a group's one parameter stacks so many experts, each of which is stored apart from the others."""
        shape, *others = group.parameters.values()
        if others or shape[:1] != (experts,):
            return False
        if _lies_in_one(group):
            return all(self.stored[name][:1] == (experts,) for name, _ in group.stored)
        assert group.converter is not None
        first = group.converter.operations[0]
        if not isinstance(first, MergeModulelist) or first.dim or any(len(n) != experts for n in _names(group)):
            return False
        one = self.load_part([group], lambda name, part: torch.empty(self.stored[name], device="meta"), range(1))
        return [tuple(tensor.shape) for tensor in one.values()] == [(1, *shape[1:])]

    def load_part(self, groups: Iterable[Group], read: ReadPart, experts: range) -> dict[str, Tensor]:
        """Some experts of the parameters of groups that :meth:`can_part`, by name."""
        made: dict[str, Tensor] = {}
        for group in groups:
            if _lies_in_one(group):
                name = group.stored[-1][0]
                part = read(name, experts)
                as_stored = self.stored[name][1:] == group.parameters[group.target][1:]
                made[group.target] = part if as_stored else part.transpose(1, 2).contiguous()
                continue
            wanted = {name for names in _names(group) for name in names[experts.start : experts.stop]}
            made |= self._convert(group, ((n, pattern, read(n, None)) for n, pattern in group.stored if n in wanted))
        return made

    def store(self, groups: Iterable[Group], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of some groups by their names in the files, from parameters by name, of any width.

        Raises:
            CheckpointError: transformers stores the parameters under other names than the checkpoint does.
        """
        stored: dict[str, Tensor] = {}
        for group in groups:
            if group.converter is None:
                stored.update({name: parameters[group.target] for name, _ in group.stored})
                continue
            if _turns_by_shape(group):
                stored.update(self._as_it_lay(group, parameters[group.target]))
                continue
            stored |= self._reverted(group, parameters, {name for name, _ in group.stored})
        return stored

    def store_part(
        self, groups: Iterable[Group], parameters: Mapping[str, Tensor], experts: range
    ) -> dict[str, Tensor]:
        """As :meth:`store`, of some experts; where they lie in one tensor, their part of its first axis."""
        stored: dict[str, Tensor] = {}
        for group in groups:
            if _lies_in_one(group):
                stored |= self.store([group], parameters)
                continue
            # Transformers numbers what it is given from zero.
            renamed = {n[i]: n[k] for n in _names(group) for i, k in enumerate(experts)}
            values = self._reverted(group, parameters, renamed.keys())
            stored |= {renamed[name]: tensor for name, tensor in values.items()}
        return stored

    def _reverted(self, group: Group, parameters: Mapping[str, Tensor], names: Set[str]) -> dict[str, Tensor]:
        self._model._weight_conversions = self._conversions
        values: dict[str, Tensor] = revert_weight_conversion(
            self._model, {name: parameters[name] for name in group.parameters}
        )
        if values.keys() != names:
            other = sorted(names ^ values.keys())[0]
            raise CheckpointError(
                f"tensor {other} is stored in a layout that transformers reads but does not write: load the model "
                "and save it again"
            )
        return values

    def _as_it_lay(self, group: Group, parameter: Tensor) -> dict[str, Tensor]:
        """A tensor that transformers turns or not, by its shape, when it reads it: in the source's orientation."""
        ((name, _),) = group.stored
        if self.stored[name] == group.parameters[group.target]:
            return {name: parameter}
        turned = parameter.transpose(1, 2).contiguous()
        if turned.shape == parameter.shape:
            raise UsageError(
                f"{name} is square at the planned widths, and transformers could not tell which way it lies: choose "
                "another ratio, or --multiple-of"
            )
        return {name: turned}


def _lies_in_one(group: Group) -> bool:
    """Whether the parameter of a group is one stored tensor, as it is or turned by its shape."""
    return group.converter is None or _turns_by_shape(group)


def _turns_by_shape(group: Group) -> bool:
    """Whether transformers transposes a stack, or leaves it, by its shape."""
    return any(getattr(operation, "check_dims", False) for operation in getattr(group.converter, "operations", ()))


def _names(group: Group) -> list[list[str]]:
    """Stored names of a group by the pattern that they match, in the order of their experts."""
    found: dict[str, list[str]] = {}
    for name, pattern in group.stored:
        found.setdefault(pattern, []).append(name)
    return list(found.values())


def default_names(model: PreTrainedModel, parameters: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes under which transformers saves a model's parameters."""
    meta = {name: torch.empty(size, device="meta") for name, size in parameters.items()}
    vars(model).pop("_weight_conversions", None)  # of another layout
    saved = revert_weight_conversion(model, meta)
    return {name: tuple(tensor.shape) for name, tensor in saved.items()}


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts numbers in names by value, as transformers does."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
