r"""Separate the causes of what a fold loses: MLPs narrowed by cases that differ in one thing each, in one table.

    python eval/ablate.py run MODEL --name smollm2 --width 1152 --calibration wikipedia-train.txt.xz \
        --text wikitext-2-raw-v1-test.txt:30 --text tinystories-validation-head.txt:10 --axis tokens
    python eval/ablate.py page

All is done in memory, in float32, with llmfold's own elimination and refinement. A case that stands in
``eval/results/ablation`` is not run again. Cases on the same tokens share one pass through the dense model.
"""

import argparse
import copy
import dataclasses
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from ablation_cases import AXES, OF_SAMPLING, Case, parsed
from ablation_page import RESULTS, page
from keeping import command_line, store
from torch import Tensor, nn

from llmfold.checkpoint import Checkpoint
from llmfold.data import sampling as sampling_module
from llmfold.data import tokens as tokens_module
from llmfold.data.beginnings import Beginnings, Mixture
from llmfold.data.sampling import Sampler, Sampling, strewn
from llmfold.data.texts import Text, read_text
from llmfold.data.tokenizer import load_tokenizer
from llmfold.data.tokens import TokenBudget
from llmfold.evaluation.perplexity import Windows, score, text_windows, token_stream
from llmfold.methods.dense import LayerInputs, Measurement, NeuronInputs
from llmfold.methods.reconstruction.layer import SELECTION_RIDGE, split
from llmfold.methods.reconstruction.refitting import RIDGES
from llmfold.models import Role, tensor_name
from llmfold.models.casting import load_model
from llmfold.models.context import Context
from llmfold.models.tying import running_shape
from llmfold.repair.least_squares import ActivationSums, cholesky
from llmfold.repair.refine import Refinement, held_error, refine
from llmfold.runtime.devices import pick_device
from llmfold.runtime.hidden_states import chunks
from llmfold.selection.elimination import eliminate_units

CALIBRATION_CHARACTERS = 10_000_000
METRIC_SEQUENCES = 32
"""Sequences whose gradients make a Fisher metric."""
JOINT_SEQUENCES, JOINT_RATE = 4, 3e-3


@contextmanager
def noisy(share: float, half: bool, vocabulary: Tensor) -> Iterator[None]:
    """A share of all draws, or of those for half of the documents, falls on any of some tokens."""
    draw = sampling_module.draw

    def mixed(logits: Tensor, chances: Tensor, temperatures: Tensor) -> Tensor:
        clean = torch.arange(len(chances)) // 2 % 2 == 0  # beginnings alternate from one document to the next
        if not half:
            clean[:] = False
        left = torch.where(clean, chances, (chances - share).clamp_min(0) / (1 - share))
        own = draw(logits, left, temperatures)
        return torch.where(clean, own, strewn(own, chances, share, vocabulary))

    sampling_module.draw = mixed if share else draw
    try:
        yield
    finally:
        sampling_module.draw = draw


@dataclass
class Bench:
    """The dense model, once by tensors and once by transformers, and the texts that are scored."""

    folder: Path
    width: int
    calibration: Path
    windows: dict[str, Windows]
    unseen: Tensor
    device: torch.device
    samples: Path | None = None

    def __post_init__(self) -> None:
        self.checkpoint = Checkpoint.open(self.folder)
        self.shape = running_shape(self.checkpoint)
        self.context = Context(self.shape)
        self.model = load_model(self.folder, torch.float32, self.device).requires_grad_(False)
        self.dense = [{role: t.weight for role, t in _linears(self.model, i)} for i in range(len(self.shape.layers))]
        self.batch = 2 if self.device.type == "cpu" else 8
        self._calibration: Tensor | None = None

    def weights(self, index: int) -> dict[Role, Tensor]:
        """A dense layer in float32 on the device."""
        roles = self.shape.layer_roles(self.shape.layers[index])
        return {role: self.checkpoint.read(tensor_name(index, role)).float().to(self.device) for role, _ in roles}

    def tokens(self, case: Case) -> Tensor:
        """(sequences, length) that a case measures on."""
        count = case.tokens // case.length
        if case.source == "own":
            return self._own(case, count)
        if self._calibration is None:
            text = read_text(str(self.calibration))
            head = text.content[:CALIBRATION_CHARACTERS]
            self._calibration = token_stream(self.folder, Text(text.name, head, text.sha256))
        stream = self._calibration
        if case.source == "head":
            return stream[: count * case.length].view(count, case.length)
        generator = torch.Generator().manual_seed(case.seed)
        starts = torch.randint(len(stream) - case.length, (count,), generator=generator).tolist()
        return torch.stack([stream[start : start + case.length] for start in starts])

    def _own(self, case: Case, count: int) -> Tensor:
        """Own samples: the head of a larger store of the same kind, where there is one."""
        kind = dataclasses.replace(Case(), **{name: getattr(case, name) for name in OF_SAMPLING}).name
        store = self.samples / f"{kind}.npy" if self.samples else None
        if store and store.exists() and len(known := np.load(store)) >= count:
            return torch.from_numpy(known[:count])
        sampler = Sampler(self.folder, self.model)
        if case.separator is not None:
            beginnings = sampler._beginnings
            ends = (case.separator, *(end for end in beginnings.ends if end != case.separator))
            sampler._beginnings = dataclasses.replace(beginnings, ends=ends)
        budget = TokenBudget.sampled(count, case.length, self.shape.positions)
        sampling = Sampling(budget, case.seed, case.temperature, mixture=Mixture(case.words))
        at_once = mock.patch.object(tokens_module, "BATCH", 64 if self.device.type == "cpu" else 256)
        with at_once, noisy(case.noise, case.half, self.vocabulary(case.of)):
            found = sampler.sequences(sampling)
        if store:
            store.parent.mkdir(parents=True, exist_ok=True)
            np.save(partial := store.with_suffix(f".{os.getpid()}.npy"), found.numpy())
            partial.replace(store)
        return found

    def vocabulary(self, kind: str) -> Tensor:
        """Tokens that noise is taken from."""
        if kind == "any":
            return torch.arange(self.shape.vocabulary)
        words = Beginnings.of(self.folder, self.model.generation_config, self.model.config).inner
        written = load_tokenizer(self.folder).convert_ids_to_tokens(list(words))
        return torch.tensor([i for i, t in zip(words, written, strict=True) if kind == "words" or t[1].isupper()])

    def embedded(self, tokens: Tensor) -> Tensor:
        """Hidden states before the first layer."""
        return torch.cat([part.cpu() for part in self.context.embed(self.checkpoint, tokens, self.device)])

    def inputs(self, index: int, weights: dict[Role, Tensor], before: Tensor, goal: Tensor | None) -> NeuronInputs:
        """A dense layer's MLP on some states; it is to give what is missing to ``goal``, or its own output."""
        measurement = Measurement(self.context, lambda: iter(()), tuple(before.shape[:2]), Path(), self.device)  # type: ignore[arg-type]
        inside, after = torch.empty(*before.shape[:2], self.context.inner_width), torch.empty_like(before)
        (coupling,) = self.shape.couplings(self.shape.layers[index]).neurons
        for part in chunks(len(before)):
            kept, states = self.context.through(before[part].to(self.device), weights, index)
            inside[part], after[part] = kept.cpu(), states.cpu()
        if goal is not None:
            outputs = self.context.mlp_outputs(inside, coupling, index)
            outputs += goal - after
            after = goal
        around = LayerInputs(measurement, index, weights, *(t.numpy() for t in (before, inside, after)), None)  # type: ignore[arg-type]
        return around.neurons_of(coupling)

    def scores(self, mlps: Mapping[int, Mapping[Role, Tensor]]) -> dict[str, float]:
        """Negative log-likelihood by text with some MLPs replaced."""
        try:
            for index, mlp in mlps.items():
                for role, module in _linears(self.model, index):
                    module.weight = nn.Parameter(mlp[role], requires_grad=False)
            with torch.inference_mode():
                return {
                    name: score(self.model, windows, batch=self.batch).nll for name, windows in self.windows.items()
                }
        finally:
            for index in mlps:
                for role, module in _linears(self.model, index):
                    module.weight = self.dense[index][role]


def _linears(model: Any, index: int) -> list[tuple[Role, nn.Linear]]:
    mlp = model.model.layers[index].mlp
    return [("gate", mlp.gate_proj), ("up", mlp.up_proj), ("down", mlp.down_proj)]


@dataclass(frozen=True)
class Sums:
    """Over some rows: the Gram of the neurons, and their products with the targets."""

    gram: ActivationSums
    cross: Tensor
    energy: float

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy)

    def error(self, rows: Tensor, kept: Tensor) -> float:
        """Relative squared error of consumer rows (k, d) for the neurons kept."""
        rows, gram = rows.double(), self.gram.gram[kept][:, kept].double()
        wrong = self.energy - 2 * float((rows * self.cross[kept]).sum()) + float((rows * (gram @ rows)).sum())
        return wrong / self.energy

    def solve(self, old: Tensor, kept: Tensor, ridge: float, toward: str) -> Tensor:
        """Rows (k, d) of least error plus a ridge."""
        gram = self.gram.gram[kept][:, kept].double()
        start = old[kept].double() * (toward == "old")
        factor = cholesky(gram, self.gram.penalty(ridge))
        return start + torch.cholesky_solve(self.cross[kept] - gram @ start, factor)


def sums(inputs: NeuronInputs, parts: Iterable[slice]) -> Sums:
    """Sums over the neurons of a dense MLP and what it is to give."""
    gram, cross, total, energy, weight = None, None, None, 0.0, 0.0
    for part in parts:
        x, y, w = inputs.mlp(part)
        a = inputs.neurons(x)
        scaled = a * w[:, None]
        new = (scaled.T @ a, (scaled.T @ y).double(), scaled.double().sum(0))
        gram, cross, total = new if gram is None else (gram + new[0], cross + new[1], total + new[2])
        energy += float((y.square().sum(1) * w).double().sum())
        weight += float(w.double().sum())
    return Sums(ActivationSums(gram, total, weight), cross, energy)  # type: ignore[arg-type]


def fit(
    case: Case, inputs: NeuronInputs, width: int, known: dict[str, Any], steps_on: NeuronInputs | None = None
) -> tuple[dict[Role, Tensor], dict[str, float]]:
    """Narrow one MLP; returns its tensors, and its errors on the rows fitted to and on those held back.

    Args:
        case: what to do.
        inputs: the MLP on its layer's states.
        width: neurons to keep.
        known: what other cases on the same inputs have computed.
        steps_on: other states of the MLP, on which it is refined; the same if None.
    """
    train_parts, held_parts = split(inputs.layer.measurement.size[0])
    if "train" not in known:
        known["train"], known["held"] = sums(inputs, train_parts), sums(inputs, held_parts)
        known["whole"] = known["train"] + known["held"]
    train, held, whole = known["train"], known["held"], known["whole"]
    old, metric = inputs.weights["down"].T, known.get("metrics", {}).get(case.metric)
    if case.metric not in known:
        rows = old
        if case.target != "alone":  # the best consumer is no longer the one that is there
            every = torch.arange(len(old), device=old.device)
            rows = whole.solve(old, every, SELECTION_RIDGE, "old").float()
        order = eliminate_units(whole.gram, rows, width, SELECTION_RIDGE, metric=metric)
        known[case.metric] = order.kept
    kept = known[case.metric]
    ridges = RIDGES if case.ridge is None else (case.ridge,)
    trials = [train.solve(old, kept, ridge, case.toward) for ridge in ridges]
    errors = [held.error(trial, kept) for trial in trials]
    best = min(range(len(ridges)), key=errors.__getitem__)
    facts = {"fitted": train.error(trials[best], kept), "held": errors[best], "ridge": ridges[best]}
    start = {role: inputs.weights[role][kept] for role in ("gate", "up")}
    if case.refine:
        settings = Refinement(case.refine, case.batch, metric=known.get("metrics", {}).get(case.refine_in))
        trained = start | {"down": trials[best].float().T.contiguous()}
        seed = case.seed + inputs.layer.index
        refined, (before, facts["refined"]) = refine(
            trained, steps_on or inputs, train_parts, held_parts, settings, seed
        )
        if facts["refined"] < before:
            return refined, facts
    return start | {"down": whole.solve(old, kept, ridges[best], case.toward).float().T.contiguous()}, facts


def metrics(bench: Bench, tokens: Tensor, wanted: set[str]) -> list[dict[str, Tensor]]:
    """Maps (hidden, hidden) of every layer's output whose squared norm chooses neurons."""
    layers, hidden = len(bench.shape.layers), bench.shape.hidden
    moments: dict[str, list[Tensor]] = {
        name: [torch.zeros(hidden, hidden, device=bench.device) for _ in range(layers)] for name in wanted
    }
    if "head" in wanted:
        head = bench.model.lm_head.weight.float()
        moments["head"] = [head.T @ head] * layers
    if "readers" in wanted:
        moments["readers"] = _readers(bench)
    if wanted & {"fisher", "fisher-token", "whitened"}:
        states: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _m, _i, out: states.append(out)) for layer in bench.model.model.layers
        ]
        embed = bench.model.model.embed_tokens.register_forward_hook(lambda _m, _i, out: out.requires_grad_())
        generator = torch.Generator(bench.device).manual_seed(0)
        try:
            for row in tokens[:METRIC_SEQUENCES]:
                states.clear()
                logits = bench.model(row[None].to(bench.device), use_cache=False).logits[0]
                labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
                found = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), states)
                for index, (state, gradient) in enumerate(zip(states, found, strict=True)):
                    g, h = gradient.reshape(-1, hidden), state.detach().reshape(-1, hidden)
                    unit = g / g.norm(dim=1, keepdim=True).clamp_min(1e-30)
                    for name, rows in (("fisher", g), ("fisher-token", unit), ("whitened", h)):
                        if name in wanted:
                            moments[name][index] += rows.T @ rows
        finally:
            for hook in (*hooks, embed):
                hook.remove()
    return [
        {name: _root(moments[name][i], -0.5 if name == "whitened" else 0.5) for name in wanted} for i in range(layers)
    ]


def joint(
    bench: Bench, start: dict[int, dict[Role, Tensor]], tokens: Tensor, case: Case
) -> dict[int, dict[Role, Tensor]]:
    """Train narrowed MLPs together on sequences, so that the model's distributions are the dense model's."""
    dense, folded = bench.model, copy.deepcopy(bench.model)
    found: dict[tuple[int, Role], Tensor] = {}
    for index, mlp in start.items():
        for role, module in _linears(folded, index):
            found[index, role] = module.weight = nn.Parameter(mlp[role].clone())
    rates = [JOINT_RATE * float(t.detach().square().mean().sqrt()) for t in found.values()]
    optimiser = torch.optim.Adam([{"params": [t], "lr": r} for t, r in zip(found.values(), rates, strict=True)])
    generator = torch.Generator().manual_seed(case.seed)
    for step in range(case.joint):
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / case.joint)
        some = tokens[torch.randint(len(tokens), (JOINT_SEQUENCES,), generator=generator)].to(bench.device)
        with torch.no_grad():
            wanted = dense(some, use_cache=False).logits.log_softmax(-1)
        given = folded(some, use_cache=False).logits.log_softmax(-1)
        loss = F.kl_div(given, wanted, reduction="none", log_target=True).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return {index: {role: found[index, role].detach() for role in mlp} for index, mlp in start.items()}


def _readers(bench: Bench) -> list[Tensor]:
    """How strongly all that comes after a layer reads the directions of its output, every reader in its own scale."""
    head = bench.model.lm_head.weight.float() * bench.model.model.norm.weight.float()
    total, found = _unit(head.T @ head), []
    for index in reversed(range(len(bench.shape.layers))):
        found.append(total)
        weights = bench.weights(index)
        for norm, roles in (("input_norm", ("q", "k", "v")), ("post_norm", ("gate", "up"))):
            for role in roles:
                read = weights[role] * weights[norm]
                total = total + _unit(read.T @ read)
    return found[::-1]


def _unit(moment: Tensor) -> Tensor:
    return moment / moment.trace()


def _root(moment: Tensor, power: float) -> Tensor:
    """Power of a second moment, with a hundredth of its mean eigenvalue added."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(0) + 0.01 * values.mean()
    return ((vectors * values**power) @ vectors.T).float()


def run_group(bench: Bench, cases: list[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Run cases on the same tokens, layer by layer together, then score each."""
    start = time.perf_counter()
    tokens = bench.tokens(cases[0])
    sampled = time.perf_counter() - start
    wanted = {name for case in cases for name in (case.metric, case.refine_in)} - {"raw"}
    maps = metrics(bench, tokens, wanted) if wanted else [{}] * len(bench.shape.layers)
    dense, unseen = bench.embedded(tokens), bench.embedded(bench.unseen)
    folded = {case: dense.clone() for case in cases if case.target != "alone"}
    mlps: dict[Case, dict[int, dict[Role, Tensor]]] = {case: {} for case in cases}
    facts: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    seconds = dict.fromkeys(cases, 0.0)
    for index in range(len(bench.shape.layers)):
        weights = bench.weights(index)
        around, foreign = (bench.inputs(index, weights, states, None) for states in (dense, unseen))
        known: dict[str, Any] = {"metrics": maps[index]}
        for case in cases:
            inside = case.layers is None or case.layers[0] <= index < case.layers[1]
            clock = time.perf_counter()
            if case.target == "alone" and inside:
                mlps[case][index], found = fit(case, around, bench.width, known)
            elif inside:
                mlps[case][index], found = _fit_on_folded(bench, case, folded, around, known)
            seconds[case] += time.perf_counter() - clock
            if inside:
                unseen_error = held_error(mlps[case][index], foreign, list(chunks(len(unseen))))
                facts[case].append({"layer": index, **found, "unseen": unseen_error})
        dense, unseen = torch.from_numpy(around.layer.after), torch.from_numpy(foreign.layer.after)
        print(f"layer {index}", end="\r", flush=True)
    for case in cases:
        if case.joint:
            mlps[case] = joint(bench, mlps[case], tokens, case)
        yield case, {"nll": bench.scores(mlps[case]), "layers": facts[case], "fit": seconds[case], "tokens": sampled}


def _fit_on_folded(
    bench: Bench, case: Case, folded: dict[Case, Tensor], dense: NeuronInputs, known: dict[str, Any]
) -> tuple[dict[Role, Tensor], dict[str, float]]:
    """Narrow an MLP on the folded model's inputs, correcting a share of the error that they bring; moves them on."""
    inputs = bench.inputs(dense.layer.index, dense.layer.weights, folded[case], None)
    share = float(case.target)
    own, inside = (torch.from_numpy(states) for states in (inputs.layer.after, inputs.layer.inside))
    goal = torch.lerp(own, torch.from_numpy(dense.layer.after), share)
    given, output = inside.chunk(2, -1)  # what the MLP of a plain layer reads and gives
    attended, wanted = own - output, torch.cat((given, output + goal - own), -1)
    layer = dataclasses.replace(inputs.layer, after=goal.numpy(), inside=wanted.numpy())  # type: ignore[arg-type]
    inputs = layer.neurons_of(inputs.coupling)
    if case.closed == "alone":
        mlp, facts = fit(dataclasses.replace(case, target="alone"), dense, bench.width, known, steps_on=inputs)
    else:
        mlp, facts = fit(case, inputs, bench.width, {"metrics": known["metrics"]})
    after = torch.empty_like(goal)
    for part in chunks(len(goal)):
        x, _, _ = inputs.mlp(part)
        after[part] = attended[part] + inputs.mlp_output(x, mlp).cpu().view_as(after[part])
    folded[case] = after
    return mlp, facts


def run(arguments: argparse.Namespace) -> None:
    """Run the cases of some axes that do not stand yet."""
    torch.manual_seed(0)
    results = RESULTS / arguments.name
    results.mkdir(parents=True, exist_ok=True)
    windows = {}
    for text in arguments.text:
        path, _, limit = text.rpartition(":")
        found = read_text(path)
        windows[found.name] = text_windows(arguments.folder, found, length=arguments.length, limit=int(limit))
    unseen = token_stream(arguments.folder, read_text(arguments.unseen))[: 8 * 512].view(8, 512)
    bench = Bench(
        arguments.folder,
        arguments.width,
        arguments.calibration,
        windows,
        unseen,
        pick_device(arguments.device),
        arguments.samples,
    )
    dense = results / "dense.json"
    if not dense.exists():
        protocols = {name: found.protocol for name, found in windows.items()}
        store(dense, {"nll": bench.scores({}), "protocols": protocols, "note": arguments.note})
    named = (case for axis in arguments.axis for case in AXES[axis])
    cases = list(dict.fromkeys((*named, *map(parsed, arguments.case))))
    pending = [case for case in cases if not (results / f"{case.name}.json").exists()]
    part, parts = map(int, arguments.share.split("/"))
    pending = pending[part - 1 :: parts]
    for key in dict.fromkeys(case.sequences for case in pending):
        for case, found in run_group(bench, [case for case in pending if case.sequences == key]):
            store(results / f"{case.name}.json", {"case": dataclasses.asdict(case), "width": bench.width, **found})
            print(case.name, {name: round(math.exp(value), 3) for name, value in found["nll"].items()}, flush=True)


def describe(runs: argparse.ArgumentParser) -> None:
    """Options of this script."""
    runs.add_argument("--width", type=int, required=True, help="neurons to keep in every layer")
    runs.add_argument("--calibration", type=Path, required=True, help="text that cases of source text are fitted on")
    runs.add_argument("--unseen", required=True, help="text on which errors of single layers are measured")
    runs.add_argument("--text", action="append", required=True, help="FILE:WINDOWS to score")
    runs.add_argument("--axis", action="append", default=[], choices=list(AXES))
    runs.add_argument("--case", action="append", default=[], help="one more, such as source=own,tokens=65536")
    runs.add_argument("--samples", type=Path, help="folder where own samples are kept for other cases")
    runs.add_argument("--share", default="1/1", help="I/N: every Nth case, from the Ith")


if __name__ == "__main__":
    command_line(__doc__, describe, run, page)
