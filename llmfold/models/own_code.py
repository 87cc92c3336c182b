"""The modelling file that llmfold writes for layers of different widths: a folder's is run if it is that very text."""

from importlib import resources
from pathlib import Path

from llmfold.checkpoint.accept import OWN_MODULE
from llmfold.errors import CheckpointError
from llmfold.folder_files import CONFIG_FILE
from llmfold.jsonfile import read_object
from llmfold.models.base import Architecture
from llmfold.models.registry import ARCHITECTURES

MODELING_FILE = f"{OWN_MODULE}.py"


def class_name(architecture: Architecture) -> str:
    """The class of the file that computes the layers of a family."""
    return f"Folded{architecture.causal_lm}"


def auto_map(architecture: Architecture) -> dict[str, str]:
    """What config.json says of the file."""
    return {"AutoModelForCausalLM": f"{OWN_MODULE}.{class_name(architecture)}"}


def modeling_source(architecture: Architecture) -> str:
    """Text of the file for the layers of a family."""
    template = resources.files("llmfold.models").joinpath("templates/modeling_llmfold.txt").read_text("utf-8")
    return template.format(prefix=architecture.prefix, model_type=architecture.model_type)


def runs_own_code(folder: Path) -> bool:
    """Whether a checkpoint is computed by llmfold's modelling file, as this version writes it.

    Raises:
        CheckpointError: it names the file, and what lies there is another text.
    """
    config = read_object(folder / CONFIG_FILE, unique_keys=False)
    named, architecture = config.get("auto_map"), ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None or not isinstance(named, dict) or OWN_MODULE not in str(named):
        return False
    path = folder / MODELING_FILE
    if named == auto_map(architecture) and path.is_file() and path.read_text("utf-8") == modeling_source(architecture):
        return True
    raise CheckpointError(
        f"{path} is not what this version of llmfold writes, and it runs no code but its own: pass "
        "--trust-remote-code to 'llmfold eval' if you have read it, or fold the dense model anew"
    )
