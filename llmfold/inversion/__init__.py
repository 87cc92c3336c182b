"""Inversion: inputs that a trained module itself implies, by gradient descent on what its normalisations expect."""

from llmfold.inversion.deep import InversionOptions as InversionOptions
from llmfold.inversion.deep import inverted_inputs as inverted_inputs
