"""What the reconstruction costs: ``--method self``, ``calibrated`` and ``weights``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmfold.data.tokens import refine_steps, token_budget
from llmfold.methods.reconstruction.held import corrects, held_back
from llmfold.methods.reconstruction.importance import sequences_for
from llmfold.methods.reconstruction.losses import Judged
from llmfold.methods.reconstruction.population import PopulationOptions, population_rows
from llmfold.methods.reconstruction.refitting import RIDGES
from llmfold.methods.reconstruction.streams import sequences_carried
from llmfold.methods.sampling_cost import with_sampling
from llmfold.models import LayerShape
from llmfold.planning.cost import Cost, Stage, attention_flops, decoder_flops, forward_flops, head_flops, layer_flops
from llmfold.planning.plan import FoldPlan
from llmfold.planning.sensitivity import kept_neurons
from llmfold.repair.least_squares import PANEL, WIDE
from llmfold.repair.refine import Refinement
from llmfold.runtime.devices import pick_device
from llmfold.runtime.hidden_states import CHUNK

_SINGLE, _DOUBLE = 4, 8
"""Bytes of a number."""
_ADAM_TENSORS = 5
"""Tensors of the size of the MLP that refinement holds: where it starts, parameters, gradients and two moments."""
_ADAM_TRAFFIC = 10
"""Times that a step reads or writes a number of the MLP."""


def tokens_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost on token sequences, sampled or read."""
    budget = token_budget(plan.config, plan.before)
    judged, steps = Judged(plan.config, plan.before), refine_steps(plan.config)
    work = _Work(plan, budget.sequences, budget.length, steps, judged)
    shape, tokens = plan.before, sequences_for(budget) * budget.length
    # A pass forward, and one back that computes every layer again; weights need no gradients.
    layers = 3 * decoder_flops(shape, tokens, budget.length) + len(shape.layers) * 2.0 * tokens * shape.hidden**2
    importance = Stage("importance", large=layers + 2 * head_flops(shape, tokens), disk=2 * plan.bytes_before)
    before = [Stage("prepare"), importance] if plan.folded_layers else []
    cost = work.cost([*work.depth(importance), *before], processes)
    states = (len(shape.layers) + 1) * tokens * shape.hidden * _SINGLE
    return with_sampling(replace(cost, states=max(cost.states, states)), plan, budget, processes)


def population_cost(plan: FoldPlan, processes: int = 1) -> Cost:
    """Cost on a population that the weights imply: its prior is a fixed point of forward passes."""
    options, shape = PopulationOptions(), plan.before
    passes = forward_flops(shape, options.prior_rounds * options.prior_members, options.context)
    metric, disk = 2.0 * shape.vocabulary * shape.hidden**2, options.prior_rounds * plan.bytes_before
    prepare = Stage("prepare", large=passes, double=metric, disk=disk)
    return _Work(plan, population_rows(plan.config, shape), options.context, 0).cost([prepare], processes)


@dataclass(frozen=True)
class _Work:
    """The reconstruction on some sequences.

    Attributes:
        plan: widths before and after.
        sequences, length: rows that are measured on.
        steps: of refinement.
        judged: parts of layers of which it is measured what they lose.
    """

    plan: FoldPlan
    sequences: int
    length: int
    steps: int
    judged: Judged | None = None

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def measured(self) -> "_Work":
        """The same on the sequences that curves are made on."""
        if self.judged is None:
            return self
        return replace(self, sequences=self.judged.sequences(self.sequences, self.length))

    @property
    def _carried(self) -> int:
        """Tokens that are carried on from every part that is judged."""
        return sequences_carried(self.sequences, self.length) * self.length

    @property
    def _streams(self) -> tuple[int, int]:
        """Streams of parts of single layers, and of parts of all layers at once."""
        judged = self.judged
        return (len(judged.alone) * len(self.plan.before.layers), len(judged.together)) if judged else (0, 0)

    @property
    def held(self) -> int:
        """Tokens that ridges and refinements are judged on."""
        return held_back(self.sequences) * self.length

    @property
    def followed(self) -> int:
        """Tokens that are followed through the folded model."""
        return self.tokens if corrects(self.plan.before, self.steps, self.sequences) else 0

    def cost(self, before: list[Stage], processes: int) -> Cost:
        """The whole, behind what comes ``before`` it; states lie before, within and after a layer of each process."""
        shape, layers = self.plan.before, self.plan.before.layers
        changed = [(a, b) for a, b in zip(layers, self.plan.after.layers, strict=True) if a != b]
        area = max((self._area(a, b) for a, b in changed), default=0)
        wide = max(map(self._wide, range(len(layers)))) * _SINGLE
        layers_at_hand = max(processes, 1 + self.plan.config.removes_blocks)  # a block and the one before it
        states = (3 * layers_at_hand + 1) * self.tokens * shape.hidden * _SINGLE
        states += sum(self._streams) * self._carried * shape.hidden * _SINGLE
        # Before a layer and after it, and what its MLP is given, is to give, and is to bring the states to.
        states += 5 * self.followed * shape.hidden * _SINGLE if changed else 0
        if any(self._streams):  # consumers that are judged, as wide as the dense ones
            features = (a.heads * shape.head_dim + a.intermediate * shape.mlps(a) for a in layers)
            wide += max(features) * shape.hidden * _SINGLE
        if self.plan.config.removes_blocks:
            whole = self.plan.whole.layers
            area = max(area, *map(self._block_area, whole))
            wide += max(map(self.plan.whole.layer_parameters, whole)) * _SINGLE
            repairs = len(self.plan.removed) or len(whole) // 2
            rows = len(whole) * self._carried + repairs * max(each.intermediate for each in whole)
            states += rows * shape.hidden * _SINGLE
        sizes = {"work_area": area + wide, "states": states, "tokens": self.tokens, "length": self.length}
        widths = self.measured.widths() if changed and self.plan.config.measures else ()
        return Cost.of([*before, *widths, *(self._layers() if changed else ())], **sizes)

    def depth(self, importance: Stage) -> Iterator[Stage]:
        """What each block costs that may go: a pass, a refit of the MLP before it, and what is left of the model.

        Curves that weigh blocks against widths are those of the whole model, with an ``importance`` of its own.
        """
        plan, shape = self.plan, self.plan.whole
        if not plan.config.removes_blocks:
            return
        yield Stage("depth", large=2 * decoder_flops(shape, self.tokens, self.length), disk=2 * plan.bytes_before)
        blocks = len(shape.layers)
        carried = blocks / 2 * decoder_flops(shape, self._carried, self.length)
        yield Stage("depth", large=carried + blocks * head_flops(shape, self._carried))
        for a in shape.layers:
            n, fits, rows = a.intermediate, len(RIDGES), self.tokens + self.held
            fitted = (
                self._gram_of_neurons(a) + 2.0 * rows * n * shape.hidden + 2.0 * fits * self.held * n * shape.hidden
            )
            yield self._solve("depth", n, n, fits, fitted)
        if plan.config.depth == "auto":
            yield from (replace(stage, name="depth") for stage in (importance, *self.measured.widths()))

    def _wide(self, index: int) -> int:
        """Parameters of a layer that are at hand at once; experts are read one by one, and held as stored and wide."""
        group, rest = self.plan.before.apart(index)
        if not group or pick_device(self.plan.config.device).type != "cpu":
            return self.plan.before.layer_parameters(self.plan.before.layers[index])
        return rest + 2 * group

    def widths(self) -> Iterator[Stage]:
        """Curves of all layers, and the losses that they go through."""
        shape = self.plan.before
        yield Stage("widths", large=decoder_flops(shape, self.tokens, self.length), disk=self.plan.bytes_before)
        for a in shape.layers:
            yield Stage("widths", large=self._gram_of_heads(a) + self._gram_of_neurons(a))
            if shape.folds_heads(a):
                yield self._eliminate_heads("widths", a, 1)
            keep = kept_neurons(a.intermediate, self.plan.config.ratio or 0.0, shape.grain)
            yield from (self._eliminate_neurons("widths", a, keep) for _ in range(shape.mlps(a)))
        if self.judged and self.judged.parts:
            yield from self._judged_refits(self.judged)
            yield self._losses()

    def _layers(self) -> Iterator[Stage]:
        shape = self.plan.before
        ordered = self.plan.config.measures and self.measured.sequences == self.sequences
        yield Stage("forward", large=decoder_flops(shape, self.tokens, self.length), disk=self.plan.bytes_before)
        for a, b in zip(shape.layers, self.plan.after.layers, strict=True):
            if a.heads != b.heads:
                yield Stage("measure", large=self._gram_of_heads(a))
                if not ordered:
                    yield self._eliminate_heads("select", a, a.units_in(b))
                widths = (a.heads * shape.head_dim, b.heads * shape.head_dim)
                yield self._refit(*widths, self._head_rows(a, self.held))
            yield self._follow(a, b)
            if a.intermediate != b.intermediate:
                yield Stage("measure", large=self._gram_of_neurons(a))
                for _ in range(shape.mlps(a)):
                    if not ordered:
                        yield self._eliminate_neurons("select", a, b.intermediate)
                    yield self._refit(a.intermediate, b.intermediate, self._neuron_rows(a, self.held))
                    if self.steps and self.held:
                        yield self._refine(b.intermediate)

    def _follow(self, before: LayerShape, after: LayerShape) -> Stage:
        """States through a folded layer, and through the one whose MLP is not folded yet where that is refined."""
        behind = replace(before, heads=after.heads, kv_heads=after.kv_heads)
        run = [after] if before.intermediate == after.intermediate else [behind, after]
        flops = (layer_flops(self.plan.before, layer, self.followed, self.length) for layer in run)
        return Stage("forward", large=sum(flops))

    def _judged_refits(self, judged: Judged) -> Iterator[Stage]:
        """Each part of each layer that is judged, refit."""
        shape = self.plan.before
        for a in shape.layers:
            kept = judged.widths("neurons", a).intermediate
            rows = self._neuron_rows(a, self.held)
            yield from (replace(self._refit(a.intermediate, kept, rows), name="widths") for _ in range(shape.mlps(a)))
            if "heads" in judged.parts and shape.folds_heads(a):
                before, after = (heads * shape.head_dim for heads in (a.heads, judged.widths("heads", a).heads))
                yield replace(self._refit(before, after, self._head_rows(a, self.held)), name="widths")

    def _losses(self) -> Stage:
        """Parts of single layers through all later ones, half a pass for each; parts of all layers through all."""
        shape, (alone, together) = self.plan.before, self._streams
        carried = (alone / 2 + together) * decoder_flops(shape, self._carried, self.length)
        return Stage("widths", large=carried + (alone + together + 1) * head_flops(shape, self._carried))

    def _head_rows(self, layer: LayerShape, tokens: int) -> float:
        """Operations for the outputs of all heads."""
        shape = self.plan.before
        projections = 2.0 * tokens * (layer.heads + 2 * layer.kv_heads) * shape.head_dim * shape.hidden
        return projections + attention_flops(shape, layer, tokens, self.length)

    def _neuron_rows(self, layer: LayerShape, tokens: int) -> float:
        """Operations for the activations of all neurons."""
        return 4.0 * tokens * self.plan.before.hidden * layer.intermediate

    def _gram_of_heads(self, layer: LayerShape) -> float:
        features = layer.heads * self.plan.before.head_dim
        return self._head_rows(layer, self.tokens) + gram_flops(self.tokens, features)

    def _gram_of_neurons(self, layer: LayerShape) -> float:
        return self._neuron_rows(layer, self.tokens) + gram_flops(self.tokens, layer.intermediate)

    def _eliminate_heads(self, name: str, layer: LayerShape, keep: int) -> Stage:
        """Factor and inverse in float64; every step solves for the blocks left, and downdates the inverse."""
        units, n, d = layer.head_units, layer.heads * self.plan.before.head_dim, self.plan.before.hidden
        size, steps = n // units, units - keep
        solved = 2.0 * size**2 * (size + d) * steps * (units + keep) / 2
        return Stage(name, double=float(n) ** 3 + solved + 2.0 * steps * n * size * (n + d))

    def _eliminate_neurons(self, name: str, layer: LayerShape, keep: int) -> Stage:
        """Factor, inverse and products; then three products of rank one a step, on the units that are left."""
        n = layer.intermediate
        steps = (float(n) ** 3 - float(keep) ** 3) / 3 * 6
        flops = float(n) ** 3 + 2.0 * n**2 * self.plan.before.hidden + steps
        return Stage(name, large=flops) if n > WIDE else Stage(name, double=flops)

    def _refit(self, n: int, k: int, rows: float) -> Stage:
        """Ridges on the rows to fit on, the best of them on all rows, and their errors on the rows held back."""
        d, fits = self.plan.before.hidden, len(RIDGES) + 1
        products = rows + (2.0 * fits * k * (n - k) * d + 2.0 * fits * self.held * k * d)
        return self._solve("select", n, k, fits, products)

    def _solve(self, name: str, n: int, k: int, fits: int, products: float) -> Stage:
        """So many consumers of k of n features by Cholesky factors, beside other ``products``."""
        solved = fits * (float(k) ** 3 / 3 + 2.0 * k**2 * self.plan.before.hidden)
        return Stage(name, large=products + solved) if n > WIDE else Stage(name, large=products, double=solved)

    def _refine(self, k: int) -> Stage:
        """Steps of Adam: forward, the gradients of all three matrices and of the neurons; and three judgements."""
        entries = 3.0 * self.plan.before.hidden * k
        rows = self.steps * Refinement.batch * 2 * (2 + 1 / 3) + 3 * 2 * self.held
        return Stage("refine", large=rows * entries, memory=self.steps * _ADAM_TRAFFIC * _SINGLE * entries)

    def _area(self, before: LayerShape, after: LayerShape) -> int:
        """Largest work area of a layer; Grams of the rows to fit on and of all rows are held throughout."""
        shape = self.plan.before
        wanted = [self._chunk(before)]
        if before.heads != after.heads or self.plan.config.measures:
            wanted.append(self._gram_area(before.heads * shape.head_dim, after.heads * shape.head_dim, _DOUBLE))
        if before.intermediate != after.intermediate or self.plan.config.measures:
            n, k = before.intermediate, after.intermediate
            wanted.append(self._gram_area(n, k, _SINGLE if n > WIDE else _DOUBLE))
            if self.steps:
                wanted.append(_ADAM_TENSORS * 3 * shape.hidden * k * _SINGLE)
        return max(wanted) + self._chunk(before)

    def _block_area(self, layer: LayerShape) -> int:
        """Work area of the MLP that takes over what the next block adds."""
        n = layer.intermediate
        return self._gram_area(n, n, _SINGLE if n > WIDE else _DOUBLE) + 2 * self._chunk(layer)

    def _gram_area(self, n: int, k: int, size: int) -> int:
        """Grams with what elimination, the refit, or its judgement holds beside them."""
        return 2 * _SINGLE * n**2 + 3 * size * max(n, k) ** 2

    def _chunk(self, layer: LayerShape) -> int:
        """Activations of the sequences that pass through a layer at once."""
        shape = self.plan.before
        numbers = 3 * layer.intermediate + 4 * layer.heads * shape.head_dim + 4 * shape.hidden
        return _SINGLE * CHUNK * self.length * numbers


def gram_flops(tokens: float, n: int) -> float:
    """Operations of a Gram whose upper part is mirrored by panels."""
    panels = max(1, -(-n // PANEL))
    return 2.0 * tokens * n**2 * (panels + 1) / (2 * panels)
