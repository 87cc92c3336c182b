"""Write llmfold/engines/known.json: what the installed engines list as known.

python eval/engines/known.py build/engines
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import ROOT
from environments import ENGINES

LISTS = ROOT / "llmfold" / "engines" / "known.json"
_MODEL_TYPES = (
    "from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names; print(*names)"
)
_EXPORTED = (
    "import optimum.exporters.onnx.model_configs; from optimum.exporters.tasks import TasksManager as tasks; "
    "print(*tasks.get_supported_model_type_for_task('text-generation', 'onnx'))"
)
_VLLM = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"


def vllm_classes(registry: str) -> list[str]:
    """Classes of the table of text models in the source of vLLM's registry, which takes long to import."""
    for node in ast.parse(registry).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        named = [target.id for target in targets if isinstance(target, ast.Name)]
        if "_TEXT_GENERATION_MODELS" in named and isinstance(node.value, ast.Dict):
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    raise ValueError("vLLM's registry has no table of text models")


def main() -> None:
    """Ask every engine that is installed, and keep the lists of the others."""
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "build/engines").resolve()
    pythons = {engine.key: engine.python(work) for engine in ENGINES}

    def words(key: str, code: str) -> list[str]:
        return subprocess.run([pythons[key], "-c", code], capture_output=True, text=True, check=True).stdout.split()

    known = json.loads(LISTS.read_text())
    for key, code in (("transformers-4.46", _MODEL_TYPES), ("transformers-4.57", _MODEL_TYPES), ("onnx", _EXPORTED)):
        if pythons[key].exists():
            known[key] = sorted(words(key, code))
    if pythons["vllm"].exists():
        (place,) = words("vllm", _VLLM)
        known["vllm"] = sorted(vllm_classes((Path(place) / "model_executor/models/registry.py").read_text()))
    LISTS.write_text(json.dumps(known, indent=0) + "\n")


if __name__ == "__main__":
    main()
