"""Texts that are read for perplexity and calibration."""

from hostile_inputs.texts import tables, texts

from hostile_targets.kind import Kind
from hostile_targets.world import World
from llmfold.data.plain_text import read_plain_text


def place_text(world: World, made: tuple[str, bytes]) -> None:
    suffix, data = made
    (world.case / f"text{suffix}").write_bytes(data)


def text(world: World, made: tuple[str, bytes]) -> None:
    path = world.case / f"text{made[0]}"
    read_plain_text(path)
    read_plain_text(path, characters=10)


KINDS = {
    "text": Kind(0.03, lambda _: texts(), place_text, text),
    "table of texts": Kind(0.002, lambda _: tables(), place_text, text),
}
