"""The files beside the weights that belong to the compressed model as they are."""

from fnmatch import fnmatchcase
from pathlib import Path

from llmfold.checkpoint.paths import regular_file

TEMPLATE_FOLDER = "additional_chat_templates"
# Matched against lower-cased names.
_PATTERNS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.tiktoken", "spiece.model", "chat_template.jinja", "chat_template.json"),
    *("generation_config.json", "preprocessor_config.json", "*_preprocessor_config.json", "processor_config.json"),
    *("license*", "licence*", "notice*", "use_policy*"),
)
_NEVER = (".py", ".safetensors", ".bin", ".pt", ".pth", ".gguf")


def find_side_files(folder: Path, *, remote_code: bool = False) -> list[Path]:
    """Return the tokenizer, template, generation and licence files of ``folder``, sorted, to be copied byte for byte.

    With ``remote_code`` also its ``*.py`` files. Files of ``additional_chat_templates/`` keep that folder.

    Raises:
        CheckpointError: one of them is a link that leaves the folder.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.is_dir() and _belongs(path.name, remote_code))
    templates = sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))
    names += [f"{TEMPLATE_FOLDER}/{path.name}" for path in templates if not path.is_dir()]
    return [regular_file(folder, name) for name in names]


def _belongs(name: str, remote_code: bool) -> bool:
    lower = name.lower()
    if lower.endswith(_NEVER):
        return remote_code and lower.endswith(".py")
    return any(fnmatchcase(lower, pattern) for pattern in _PATTERNS)
