"""YAML that somebody else wrote: what PyYAML's safe loader reads, within bounds, and with one kind of error."""

from typing import Any

import yaml

MAX_CHARACTERS = 50_000
_MAX_NODES = 50_000
"""Values of a document with every alias written out: nine lines of aliases stand for a billion of them."""
_LARGEST = 1 << 64


class BoundedLoader(yaml.SafeLoader):
    """The safe loader without bombs of aliases, and without integers that Python refuses to print."""

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document, refusing one that grows, or contains itself."""
        node: yaml.Node | None = super().get_single_node()
        waiting, count = [node], 0
        while waiting:
            count += 1
            if count > _MAX_NODES:
                raise yaml.YAMLError("its aliases stand for more than can be read: write the values out")
            waiting.extend(_inside(waiting.pop()))
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """An integer of 64 bits."""
        value = int(super().construct_yaml_int(node))
        if abs(value) >= _LARGEST:
            raise yaml.YAMLError("an integer in it is too large")
        return value


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_yaml_int)


def _inside(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def load(text: str, loader: type[BoundedLoader] = BoundedLoader) -> Any:
    """Read a document.

    Raises:
        yaml.YAMLError: it is no YAML, has values that are not what their tags say, or is beyond the bounds.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {MAX_CHARACTERS} characters")
    try:
        return yaml.load(text, loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # of what reads tagged values
        raise yaml.YAMLError(f"a value in it cannot be read: {error}") from error
