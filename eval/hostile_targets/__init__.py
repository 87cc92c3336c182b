"""What hostile files are sent through, and what must hold: a sentence, nothing written outside, no code run."""

from hostile_targets import bombs, model_folder, results, texts
from hostile_targets.drawing import draw
from hostile_targets.judging import BYTES, SECONDS, Verdict, Watch, judge
from hostile_targets.kind import Kind
from hostile_targets.world import World

__all__ = ["BYTES", "SECONDS", "TARGETS", "Kind", "Verdict", "Watch", "World", "draw", "judge"]
TARGETS: dict[str, Kind] = {
    name: kind for module in (model_folder, results, texts, bombs) for name, kind in module.KINDS.items()
}
"""By name."""
