"""From options to a method ready to run."""

import dataclasses
from collections.abc import Callable

import torch

from llmfold.config import BASELINES, FoldConfig
from llmfold.data import tokens as tk
from llmfold.methods.base import LayerMethod
from llmfold.methods.baselines.build import build_baseline
from llmfold.methods.dense import Measurement
from llmfold.methods.importance import Importance, sequences_for
from llmfold.methods.merging import Merging
from llmfold.methods.population import Population, PopulationOptions, population_rows
from llmfold.methods.reconstruction import Reconstruction, ReconstructionOptions
from llmfold.methods.source import Setting, token_source
from llmfold.methods.streams import PopulationStream
from llmfold.models.forward import forward_context
from llmfold.models.unembedding import Output
from llmfold.repair.refine import Refinement
from llmfold.runtime.hidden_states import STATE_FOLDER, stored_array


def build_method(setting: Setting, say: Callable[[str], None]) -> LayerMethod:
    """Prepare the method of ``setting.config``; what is sampled is stored in the work folder.

    Args:
        setting: where to work.
        say: told of every stage.

    Raises:
        LlmfoldError: missing data, unusable tokens.
    """
    method = setting.config.method
    if method == "paper":
        return Merging(setting.config, setting.shape, setting.device)
    if method == "weights":
        return _from_weights(setting, say)
    if method in BASELINES:
        return build_baseline(setting, say)
    return _from_tokens(setting, say)


PRIOR_FILE = "prior.npy"


def _dtype(config: FoldConfig) -> torch.dtype | None:
    return None if config.dtype == "auto" else getattr(torch, config.dtype)


def _from_tokens(setting: Setting, say: Callable[[str], None]) -> Reconstruction:
    source, config = token_source(setting, say), setting.config
    refinement = Refinement(tk.refine_steps(config, setting.shape))
    importance = Importance(
        source.on,
        lambda: Output.of(setting.checkpoint, setting.shape, source.on.stream.context.eps, setting.device),
        sequences_for(tk.token_budget(config, setting.shape)),
        config.seed,
    )
    options = ReconstructionOptions(
        refinement=refinement, importance=importance, seed=config.seed, dtype=_dtype(config)
    )
    return Reconstruction(source.on, options, source.facts)


def _from_weights(setting: Setting, say: Callable[[str], None]) -> Reconstruction:
    config, checkpoint, shape = setting.config, setting.checkpoint, setting.shape
    context = forward_context(checkpoint.config, shape)
    stream = PopulationStream(dataclasses.replace(context, windows=(None,) * len(context.windows)), config.seed)
    mean_field = PopulationOptions()
    population = Population(checkpoint, shape, stream, setting.device, mean_field)
    say("token prior from the weights")
    prior = torch.from_numpy(stored_array(setting.work / STATE_FOLDER / PRIOR_FILE, lambda: population.prior().numpy()))
    metric = population.output_metric(prior)
    rows = population_rows(config, shape)
    options = ReconstructionOptions(
        gaussian=0.2,
        metric=metric,
        seed=config.seed,
        dtype=_dtype(config),
    )
    on = Measurement(
        shape,
        stream,
        lambda: population.draw(prior, rows, salt=mean_field.prior_rounds),
        (rows, mean_field.context),
        setting.work,
        setting.device,
        setting.team,
    )
    entropy = float(-(prior * prior.clamp_min(1e-300).log()).sum())
    facts = {"data": "none", "members": rows * mean_field.context, "prior_entropy_nats": entropy}
    return Reconstruction(on, options, facts)
