"""What must hold of the repository itself."""

import subprocess
from pathlib import Path

import pytest
from support import ROOT, python


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_kernels_and_eval_cannot_be_imported_under_those_names() -> None:
    """Transformers probes for an optional dependency called kernels, and a package of ours would break it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "eval" / "__init__.py").exists()


def test_transformers_imports_from_the_repository_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code = (
        "import importlib.util, transformers\n"
        "from transformers import LlamaForCausalLM\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "print(spec is None or spec.origin is None)"
    )
    assert python(code).strip() == "True"


def test_no_tracked_file_names_a_path_of_this_machine() -> None:
    forbidden = [b"/" + name + b"/" for name in (b"work", b"root")]
    found = [str(path.relative_to(ROOT)) for path in tracked() if any(word in path.read_bytes() for word in forbidden)]
    assert found == []


def test_no_tracked_file_is_large() -> None:
    """The demo checkpoint is the only exception."""
    large = [path.relative_to(ROOT) for path in tracked() if path.stat().st_size > 1_000_000]
    assert all(path.parts[:2] == ("llmfold", "demo") for path in large), large


def test_the_wheel_holds_both_packages_and_nothing_called_kernels() -> None:
    pytest.importorskip("setuptools")
    from setuptools.config.pyprojecttoml import read_configuration

    packages = set(read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["packages"])
    assert {"llmfold", "llmfold.clustering", "llmfold_kernels", "llmfold_kernels.gram"} <= packages
    assert all(name.split(".")[0] in ("llmfold", "llmfold_kernels") for name in packages)


def test_llmfold_works_without_triton() -> None:
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, llmfold, llmfold_kernels\n"
        "from llmfold_kernels import dispatch\n"
        "from llmfold.clustering import cluster\n"
        "print(cluster([torch.randn(30, 4)], 10, method='hartigan').k, dispatch.on_triton(torch.ones(1)))"
    )
    assert python(code).split() == ["10", "False"]
