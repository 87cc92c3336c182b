"""Runs in an environment with an older transformers: loads folders and says what the logits of each are.

    PYTHON eval/families/run_older.py FOLDER …

Prints a line of JSON a folder: its logits are in logits.npy beside its weights, or ``error`` says why not; ``absent``
where this release has no class for it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def answer(folder: Path) -> dict[str, Any]:
    """What became of a folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, config["architectures"][0], None)
    if kind is None or config["model_type"] not in transformers.CONFIG_MAPPING:
        return {"absent": True}
    options = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
    model, loading = kind.from_pretrained(folder, output_loading_info=True, **options)
    for what, names in loading.items():
        if names:
            return {"error": f"{what}: {sorted(map(str, names))[0]}"}
    tokens = (torch.arange(24)[None] * 7 + 5) % 80
    with torch.inference_mode():
        logits = model.eval()(tokens, use_cache=False).logits
    np.save(folder / "logits.npy", logits.numpy())
    return {}


for name in sys.argv[1:]:
    try:
        found = answer(Path(name))
    except Exception as error:  # a folder that fails must not end the others
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    print(json.dumps({"folder": name, **found}), flush=True)
