"""Small models of every family, and independent ways to look at a checkpoint; shared by all tests."""

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import llmfold
from llmfold import FoldReport
from llmfold.data.sampling import Sampler, Sampling
from llmfold.models.casting import load_model

PREFIX = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
FAMILIES = tuple(PREFIX)
ROOT = Path(__file__).parent.parent
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What the configs of all tiny models say."""
_DEFAULTS: dict[str, Any] = {
    **SIZES,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def tiny_model(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """Save a random model of ``family`` with its weights in about ``shards`` files; returns ``folder``.

    A family is one of ``PREFIX``, or what transformers begins its classes with. Every parameter is drawn anew, biases
    and norm gains too, so that none of them can be forgotten unnoticed.
    """
    prefix = PREFIX.get(family, family)
    config = getattr(transformers, f"{prefix}Config")(**{**_DEFAULTS, **config_overrides})
    model: PreTrainedModel = getattr(transformers, f"{prefix}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else 0.25 * noise)
    size = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    limit = "5GB" if shards == 1 else math.ceil(size / shards)
    model.to(dtype).save_pretrained(folder, max_shard_size=limit)
    return folder


def fold(model: object, **options: Any) -> FoldReport:
    """``llmfold.fold`` by the quickest method and without measuring the result, unless told otherwise."""
    return llmfold.fold(str(model), **{"method": "paper", "fidelity_tokens": 0, **options})


def edit_json(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file; ``None`` deletes a field."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Load the single weights file of ``folder``, let ``change`` edit the tensors, and save it again."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Every tensor's entry in its file's header, read with nothing but the format's definition."""
    found: dict[str, dict[str, Any]] = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        assert not found.keys() & header.keys()
        found.update(header)
    return found


def parameters(folder: Path) -> int:
    """Parameters by the headers, a head that is tied counted once."""
    entries = headers(folder)
    tied = json.loads((folder / CONFIG).read_text()).get("tie_word_embeddings")
    if tied and "model.embed_tokens.weight" in entries:
        entries.pop("lm_head.weight", None)
    return sum(math.prod(entry["shape"]) for entry in entries.values())


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in weight_files(folder) for name, t in load_file(path).items()}


def tensor_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of dtype, shape and bytes of every tensor."""
    found = {}
    for name, tensor in tensors(folder).items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        found[name] = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + raw).hexdigest()
    return found


def file_hashes(folder: Path, *, skip: tuple[str, ...] = ("report.json", "report.html")) -> dict[str, str]:
    """SHA-256 of every file by its path inside the folder; timings live in the reports only."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in skip)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def logits(folder: Path, ids: Tensor, *, remote_code: bool = False) -> Tensor:
    """Logits of stock transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=remote_code).eval()
    with torch.inference_mode():
        return model(ids).logits


def environment(**extra: str) -> dict[str, str]:
    """Environment of a subprocess: this repository importable, one thread, no network."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def python(code: str, *arguments: object, **extra: str) -> str:
    """Run Python code in a fresh process; returns its standard output, and fails with its standard error."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment(**extra), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def forked(work: Callable[[], None]) -> int:
    """Run ``work`` in a fork of this process; returns its exit code, negative for a signal.

    A fork starts with everything imported, so that a killed run costs milliseconds and not seconds.
    """
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked_program(work: Callable[[], object], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a fork, as :func:`forked`: what it is told as ``sys.argv``, what it writes and how it exits."""
    with tempfile.TemporaryDirectory() as folder:
        texts = [Path(folder) / name for name in ("stdout", "stderr")]
        for text in texts:
            text.touch()
        code = forked(lambda: write_to(texts, lambda: _as_main(work, [str(a) for a in arguments])))
        return subprocess.CompletedProcess(arguments, code, *(text.read_text() for text in texts))


def write_to(texts: Sequence[Path], work: Callable[[], int]) -> None:
    """In a fork: do ``work`` with standard output and error appended to two files, and exit with the code it returns.

    As the interpreter does it: SystemExit is a code, any other exception a traceback and 1.
    """
    for descriptor, text in zip((1, 2), texts, strict=True):
        os.dup2(os.open(text, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))  # noqa: SIM115
    code = 1
    try:
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _as_main(work: Callable[[], object], arguments: list[str]) -> int:
    sys.argv = arguments
    found = work()
    return found if isinstance(found, int) else 0


def sample_tokens(folder: Path, sampling: Sampling) -> Tensor:
    """Sample all sequences of a budget in this process, in float32 on the CPU."""
    return Sampler(folder, load_model(folder, torch.float32, torch.device("cpu"))).sequences(sampling)
