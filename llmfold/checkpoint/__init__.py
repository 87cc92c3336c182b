"""Checkpoints on disk: found, read lazily and with suspicion; planned, written, resumed and published whole."""

from llmfold.checkpoint.blocks import sha256 as sha256
from llmfold.checkpoint.journal import Entry as Entry
from llmfold.checkpoint.journal import Journal as Journal
from llmfold.checkpoint.preflight import MARKER_FILE as MARKER_FILE
from llmfold.checkpoint.publish import JOURNAL_FILE as JOURNAL_FILE
from llmfold.checkpoint.publish import WorkFolder as WorkFolder
from llmfold.checkpoint.publish import partial_folder as partial_folder
from llmfold.checkpoint.reader import Checkpoint as Checkpoint
from llmfold.checkpoint.reader import TensorInfo as TensorInfo
from llmfold.checkpoint.reader import is_damage as is_damage
from llmfold.checkpoint.shards import TensorSpec as TensorSpec
from llmfold.checkpoint.shards import plan_shards as plan_shards
from llmfold.checkpoint.source import Source as Source
from llmfold.checkpoint.source import resolve as resolve
from llmfold.checkpoint.writer import ShardWriter as ShardWriter
from llmfold.runtime.storage import free_bytes as free_bytes
