"""Coverage-guided inputs for what reads files: atheris looks for bytes that take new branches of llmfold's own code.

    python eval/fuzz.py header --runs 100000       # also: index, config, recipe

An input must end in a result or in a sentence of llmfold; any other exception ends the run with the input that brought
it about. Beside `eval/hostile.py`, whose inputs have a shape; these begin as bytes. Needs the package atheris.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llmfold"]):
    from llmfold.checkpoint.header import read_header
    from llmfold.checkpoint.weights import read_weight_map
    from llmfold.errors import LlmfoldError
    from llmfold.jsonfile import parse_object
    from llmfold.models.plain import plain_settings
    from llmfold.models.registry import architecture_of, shape_of
    from llmfold.recipe import load_recipe

SEEDS = {
    "header": [
        (78).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"k":"v"}}'[:78]
        + bytes(4),
        (2).to_bytes(8, "little") + b"{}",
    ],
    "index": [b'{"metadata":{},"weight_map":{"a":"model-00001-of-00001.safetensors"}}'],
    "config": [
        b'{"model_type":"llama","hidden_size":8,"intermediate_size":8,"num_attention_heads":2,"num_hidden_layers":1,'
        b'"num_key_value_heads":1,"vocab_size":9,"max_position_embeddings":8,"rms_norm_eps":1e-5,"hidden_act":"silu",'
        b'"tie_word_embeddings":false}'
    ],
    "recipe": [b"mlp_ratio: 0.25\nlayers:\n  0-3: {mlp: 0, attention: 0}\n"],
}


def _config(path: Path) -> None:
    config = parse_object(path.read_bytes(), path, unique_keys=False)
    if architecture_of(config) is not None and plain_settings(config) is not None:
        shape_of(config)


READERS: dict[str, Callable[[Path], object]] = {
    "header": read_header,
    "index": read_weight_map,
    "config": _config,
    "recipe": load_recipe,
}


def main() -> None:
    """Command line; atheris ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(READERS))
    parser.add_argument("--runs", type=int, default=100_000, help="inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as work:
        corpus, path = Path(work) / "corpus", Path(work) / "input.yaml"
        corpus.mkdir()
        for number, text in enumerate(SEEDS[arguments.target]):
            (corpus / str(number)).write_bytes(text)

        def try_one(text: bytes) -> None:
            path.write_bytes(text)
            try:
                READERS[arguments.target](path)
            except LlmfoldError as error:
                if not str(error).isprintable():
                    raise ValueError("a sentence that cannot be printed") from error

        options = [f"-runs={arguments.runs}", f"-seed={arguments.seed}", "-max_len=4096", f"-artifact_prefix={work}/"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
