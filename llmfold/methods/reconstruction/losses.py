"""What predictions lose when parts of layers are narrowed, measured in nats on sequences held back.

A curve made on the rows that a layer is fitted to knows neither how the fit does on other rows nor all that later
layers make of an error: on SmolLM2 it tells the first layers from the middle, but finds the last ones harmless
(eval/results/tried.md). Losses of single layers add up, so one measured loss puts the curve of a part on the scale that
all layers share. Those of deeply narrowed MLPs add up to twice what all of them cost at once, and those of heads do
not, so what a part of all layers costs at once puts heads and neurons on the scale that both share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from llmfold.config import FoldConfig
from llmfold.effort import widest_consumer
from llmfold.methods.base import Weights
from llmfold.methods.dense import LayerInputs
from llmfold.methods.reconstruction.held import sequences_for_curves
from llmfold.methods.reconstruction.streams import ALL, Streams
from llmfold.models import LayerShape, ModelShape
from llmfold.planning import LayerCurves, Sensitivities
from llmfold.planning.sensitivity import HALF, PARTS, Part, judged_neurons


@dataclass(frozen=True)
class Judged:
    """Which losses settle the widths of a fold.

    Attributes:
        config, shape: options and the dense model's shape.
    """

    config: FoldConfig
    shape: ModelShape

    @cached_property
    def alone(self) -> tuple[Part, ...]:
        """Parts of single layers: where layers may differ."""
        adaptive = self.config.measures and self.config.allocation == "adaptive"
        return () if not adaptive else PARTS if self._split else ("neurons",)

    @cached_property
    def together(self) -> tuple[Part, ...]:
        """Parts of all layers at once: where the plan chooses between them, and no experts are read a few at a time."""
        layers = range(len(self.shape.layers))
        return PARTS if self._split and not any(self.shape.apart(index)[0] for index in layers) else ()

    def sequences(self, every: int, length: int) -> int:
        """How many of the sequences curves are made on: fewer where no layer's own width hangs on them."""
        roughly = self.together and not self.alone
        return sequences_for_curves(every, length, widest_consumer(self.shape)) if roughly else every

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts that are narrowed."""
        return self.alone or self.together

    def widths(self, part: Part, layer: LayerShape) -> LayerShape:
        """Those of a layer with a part of it narrowed: a group of heads less, or a share of the neurons."""
        if part == "heads":
            folds = self.shape.folds_heads(layer) and layer.head_units > 1
            return layer.with_units(layer.intermediate, layer.head_units - 1) if folds else layer
        share = float(self.config.ratio or 0) if self.alone else HALF
        kept = judged_neurons(layer.intermediate, share, self.shape.grain)
        return replace(layer, intermediate=min(kept, layer.intermediate))

    @property
    def _split(self) -> bool:
        open_split = self.config.measures and self.config.attention_ratio is None
        return open_split and any(map(self.shape.folds_heads, self.shape.layers))


@dataclass(frozen=True)
class Losses:
    """What is lost by every part of every layer of this process, and by every part of all layers.

    Attributes:
        streams: carry what is narrowed to the end of the model.
        judged: which losses.
    """

    streams: Streams
    judged: Judged

    def begin(self, inputs: LayerInputs, narrowed: Mapping[Part, Weights]) -> None:
        """Begin with parts of a layer narrowed, before later layers are advanced through.

        Args:
            inputs: the states around the layer.
            narrowed: its tensors where a part of it is narrowed: as wide as the dense ones, for that is what any stock
                layer runs.
        """
        for part in [part for part in self.judged.alone if part in narrowed]:
            given = self.streams.given(inputs)
            after = self.streams.measurement.context.layer(given, narrowed[part], inputs.index)
            self.streams.begin(inputs.index, part, after)

    def advance_all(self, group: Sequence[int], own: Mapping[int, tuple[LayerInputs, Mapping[Part, Weights]]]) -> None:
        """Carry what is narrowed in all layers through some of them.

        Args:
            group: neighbouring layers, which come after those of earlier calls; all processes call this alike.
            own: those of this process, each as :meth:`begin` takes it.
        """
        for index in group:
            if index in own:
                inputs, narrowed = own[index]
                given = self.streams.given(inputs)
                for part in self.judged.together:
                    self.streams.advance_all(index, part, narrowed.get(part, inputs.weights), given)
            self.streams.measurement.team.wait()  # the next layer may be another process's

    def advance(self, index: int, weights: Weights) -> None:
        """See :meth:`Streams.advance`."""
        self.streams.advance(index, weights)

    def finish(self, dense: np.ndarray) -> None:
        """See :meth:`Streams.finish`."""
        self.streams.finish(dense, self.judged.together)

    def loss(self, index: int, part: Part) -> float | None:
        """KL divergence from the dense model in nats a token, None of a part that was not narrowed."""
        return self.streams.loss(index, part)

    def loss_together(self, part: Part) -> float | None:
        """The same with a part of all layers narrowed."""
        return self.streams.loss(ALL, part)

    def scaled(self, curves: Sensitivities) -> Sensitivities:
        """Curves that predict what was measured: of each layer, and then of all together.

        Heads are never made cheaper beside neurons than they were: MLPs are judged as the closed form leaves them, and
        refined in the fold, which heads are not.
        """
        layers, factors = self.judged.shape.layers, dict[Part, float]()
        for part in PARTS:
            after = [self.judged.widths(part, layer) for layer in layers]
            single = [self._single(part, *each) for each in zip(range(len(layers)), curves.layers, after, strict=True)]
            curves, together = Sensitivities(single), self.loss_together(part)
            if together is not None:
                factors[part] = curves.factor(layers, after, together)
        for part, factor in factors.items():
            curves = curves.scaled(part, max(factors.values()) if part == "heads" else factor)
        return curves

    def _single(self, part: Part, index: int, curves: LayerCurves, after: LayerShape) -> LayerCurves:
        loss = self.loss(index, part)
        if loss is None:
            return curves
        return curves.scaled(part, Sensitivities([curves]).factor([self.judged.shape.layers[index]], [after], loss))
