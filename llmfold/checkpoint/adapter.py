"""Adapters of peft: weights that are added to a model's own, which llmfold folds only once they are merged."""

from collections.abc import Iterable
from pathlib import Path

from llmfold.checkpoint.weights import INDEX_FILE, SINGLE_FILE
from llmfold.errors import CheckpointError
from llmfold.folder_files import regular_file
from llmfold.jsonfile import read_object

ADAPTER_CONFIG = "adapter_config.json"


def refuse_adapter(folder: Path, model: str, file_names: Iterable[str]) -> None:
    """Raise CheckpointError when a model has an adapter: with peft installed, transformers loads both.

    Args:
        folder: where its small files are.
        model: what the user calls it.
        file_names: all that it has, here or on the hub.
    """
    names = set(file_names)
    if ADAPTER_CONFIG not in names:
        return
    base = read_object(regular_file(folder, ADAPTER_CONFIG), unique_keys=False).get("base_model_name_or_path")
    of = f"of {base}" if base and isinstance(base, str) else f"whose base {ADAPTER_CONFIG} does not name"
    if not names & {SINGLE_FILE, INDEX_FILE}:
        raise CheckpointError(
            f"{model} is an adapter {of}, not a model: merge the two first, "
            f"`model = peft.AutoPeftModelForCausalLM.from_pretrained({model!r}).merge_and_unload()` and "
            "`model.save_pretrained('MERGED')`, copy the tokenizer's files there, and fold MERGED"
        )
    raise CheckpointError(
        f"{model} has full weights and beside them an adapter {of} ({ADAPTER_CONFIG}), which transformers adds to them "
        f"where peft is installed: remove {ADAPTER_CONFIG} if they are merged already, or move the adapter's files to "
        f"ADAPTER and merge, `base = transformers.AutoModelForCausalLM.from_pretrained({model!r})` and "
        "`peft.PeftModel.from_pretrained(base, 'ADAPTER').merge_and_unload().save_pretrained('MERGED')`, copy the "
        "tokenizer's files there, and fold MERGED"
    )
