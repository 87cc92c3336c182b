"""Checkpoints on disk: found, read lazily and with suspicion; planned, written, resumed and published whole."""

from llmfold.checkpoint.blocks import sha256
from llmfold.checkpoint.journal import Entry, Journal
from llmfold.checkpoint.preflight import MARKER_FILE
from llmfold.checkpoint.publish import JOURNAL_FILE, WorkFolder, partial_folder
from llmfold.checkpoint.reader import Checkpoint, TensorInfo, is_damage
from llmfold.checkpoint.shards import ShardPlan, TensorSpec, plan_shards
from llmfold.checkpoint.source import Source, resolve
from llmfold.checkpoint.writer import ShardWriter
from llmfold.runtime.storage import free_bytes

__all__ = [
    "JOURNAL_FILE",
    "MARKER_FILE",
    "Checkpoint",
    "Entry",
    "Journal",
    "ShardPlan",
    "ShardWriter",
    "Source",
    "TensorInfo",
    "TensorSpec",
    "WorkFolder",
    "free_bytes",
    "is_damage",
    "partial_folder",
    "plan_shards",
    "resolve",
    "sha256",
]
