"""From options to a reconstruction that is ready to fold."""

from functools import partial

import torch

from llmfold.data import tokens as tk
from llmfold.methods.base import FoldContext
from llmfold.methods.dense import Measurement
from llmfold.methods.method import Notify
from llmfold.methods.reconstruction.blocks import Blocks
from llmfold.methods.reconstruction.fold import Reconstruction
from llmfold.methods.reconstruction.importance import Importance, sequences_for
from llmfold.methods.reconstruction.layer import ReconstructionOptions
from llmfold.methods.reconstruction.losses import Judged, Losses
from llmfold.methods.reconstruction.population import Population, PopulationOptions, population_rows
from llmfold.methods.reconstruction.streams import Streams
from llmfold.methods.source import token_source
from llmfold.models.context import Context
from llmfold.repair.refine import Refinement
from llmfold.runtime.hidden_states import stored_array

PRIOR_FILE = "prior.npy"
_GAUSSIAN_SHARE = 0.2


def from_tokens(context: FoldContext, notify: Notify) -> Reconstruction:
    """Measured on tokens, which are stored in the work folder."""
    source, config, shape = token_source(context, notify), context.config, context.shape

    ends = partial(source.measurement.context.ends, context.checkpoint, context.device)
    importance = Importance(source.measurement, ends, sequences_for(tk.token_budget(config, shape)), config.seed)
    refinement = Refinement(tk.refine_steps(config))
    judged = Judged(config, shape)
    measured = source.measurement.first(judged.sequences(*source.measurement.size))
    losses = Losses(Streams(measured, ends), judged) if judged.parts else None
    options = ReconstructionOptions(refinement=refinement, importance=importance, losses=losses)
    return Reconstruction(context, source.measurement, options, source.facts)


def blocks_on_tokens(context: FoldContext, notify: Notify) -> Blocks:
    """Whole blocks, measured on the same tokens."""
    source = token_source(context, notify)
    ends = partial(source.measurement.context.ends, context.checkpoint, context.device)
    return Blocks(source.measurement, Streams(source.measurement, ends), source.facts)


def from_weights(context: FoldContext, notify: Notify) -> Reconstruction:
    """Measured on a population that the weights imply."""
    config, shape, members = context.config, context.shape, PopulationOptions()
    forward = Context(shape)
    population = Population(context.checkpoint, forward, context.device, config.seed, members)
    notify("token prior from the weights")
    prior = torch.from_numpy(stored_array(context.states / PRIOR_FILE, lambda: population.prior().numpy()))
    rows = population_rows(config, shape)
    measurement = Measurement(
        forward,
        lambda: population.draw(prior, rows, salt=members.prior_rounds),
        (rows, members.context),
        context.work,
        context.device,
        context.team,
        shuffle_seed=config.seed,
    )
    options = ReconstructionOptions(gaussian=_GAUSSIAN_SHARE, metric=population.output_metric(prior))
    entropy = float(-(prior * prior.clamp_min(1e-300).log()).sum())
    facts = {"data": "none", "members": rows * members.context, "prior_entropy_nats": entropy}
    return Reconstruction(context, measurement, options, facts)
