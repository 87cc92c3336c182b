"""Where the weights of a model folder are: one file, or shards listed by an index."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from llmfold.errors import CheckpointError
from llmfold.folder_files import is_plain_name
from llmfold.jsonfile import read_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "pytorch_model.bin.index.json")


def read_weight_map(path: Path) -> dict[str, str]:
    """Return tensor name -> shard file name from the index at ``path``.

    Raises:
        CheckpointError: the index is unreadable, has no weight map or metadata, or names a shard that is not a plain
            ``*.safetensors`` file name.
    """
    index = read_object(path, unique_keys=True)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map: download the file again")
    if not isinstance(index.get("metadata"), dict):  # transformers does not load a model without
        raise CheckpointError(
            f'{path} has no metadata, which transformers wants: add "metadata": {{}}, or download it again'
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} places {tensor!r} in {shard!r}, which is not a safetensors file name: download it again"
            )
    return weight_map


def no_weights(model: str, file_names: Iterable[str]) -> CheckpointError:
    """Return the error for a model without safetensors weights whose files are called ``file_names``."""
    pickles = sorted(name for name in file_names if any(fnmatchcase(name, pattern) for pattern in _PICKLES))
    if pickles:
        return CheckpointError(
            f"{model} has pickled weights only ({pickles[0]}), and unpickling can run any code: convert it to "
            "safetensors first, for example with https://huggingface.co/spaces/safetensors/convert"
        )
    return CheckpointError(
        f"{model} has a config but no weights: download {SINGLE_FILE}, or {INDEX_FILE} and its shards"
    )
