"""From options to a reconstruction that is ready to fold."""

import dataclasses
from collections.abc import Callable

import torch

from llmfold.config import FoldConfig
from llmfold.data import tokens as tk
from llmfold.methods.dense import Measurement
from llmfold.methods.reconstruction.fold import Reconstruction, ReconstructionOptions
from llmfold.methods.reconstruction.importance import Importance, sequences_for
from llmfold.methods.reconstruction.population import Population, PopulationOptions, population_rows
from llmfold.methods.source import Setting, token_source
from llmfold.methods.streams import PopulationStream
from llmfold.models.forward import forward_context
from llmfold.models.unembedding import LMHead
from llmfold.repair.refine import Refinement
from llmfold.runtime.hidden_states import STATE_FOLDER, stored_array

PRIOR_FILE = "prior.npy"


def _dtype(config: FoldConfig) -> torch.dtype | None:
    return None if config.dtype == "auto" else getattr(torch, config.dtype)


def from_tokens(setting: Setting, say: Callable[[str], None]) -> Reconstruction:
    """Measured on tokens, which are stored in the work folder."""
    source, config = token_source(setting, say), setting.config
    refinement = Refinement(tk.refine_steps(config, setting.shape))
    importance = Importance(
        source.on,
        lambda: LMHead.of(setting.checkpoint, setting.shape, source.on.stream.context.eps, setting.device),
        sequences_for(tk.token_budget(config, setting.shape)),
        config.seed,
    )
    options = ReconstructionOptions(
        refinement=refinement, importance=importance, seed=config.seed, dtype=_dtype(config)
    )
    return Reconstruction(source.on, options, source.facts)


def from_weights(setting: Setting, say: Callable[[str], None]) -> Reconstruction:
    """Measured on a population that the weights imply."""
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
