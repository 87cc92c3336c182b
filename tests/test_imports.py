"""What the command line imports before it answers, and the names of the package."""

import json
import pickle
from pathlib import Path

import pytest
from support import python

import llmfold

HEAVY = ("torch", "transformers", "numpy", "scipy", "rich", "datasets", "lm_eval", "huggingface_hub")
PROGRAM = """
import contextlib, io, json, sys
from llmfold.cli import main

found = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(arguments)
    found.append((code, sorted({name.partition(".")[0] for name in sys.modules} & set(json.loads(sys.argv[2])))))
print(json.dumps(found))
"""


def test_answers_that_need_no_model_import_nothing_large(session_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    cases: list[tuple[list[str], int]] = [
        (["--version"], 0),
        (["--help"], 0),
        (["plan", "--help"], 0),
        (["eval", "--help"], 0),
        (["compare", "--help"], 0),
        (["push", "--help"], 0),
        (["export", "--help"], 0),
        (["export", "gguf", "--model", "demo", "--output", "m.bin"], 2),
        ([], 2),
        (["--ratio", "0.2"], 2),
        (["--model", "demo", "--ratoi", "0.2"], 2),
        (["--model", "demo", "--ratio", "2"], 2),
        (["--model", "demo", "--ratio", "0.1,0.1"], 2),
        (["--model", "demo", "--ratio", "0.2", "--max-shard-size", "tiny"], 2),
        (["--model", "demo", "--ratio", "0.2", "--private"], 2),
        (["--model", "demo", "--ratio", "0.2", "--method", "ifm"], 2),
        (["--model", "demo", "--recipe", "absent.yaml"], 2),
        (["--model", str(session_model), "--ratio", "2"], 2),
        (["--model", str(session_model), "--ratio", "0.2", "--method", "ifm"], 2),
        (["--model", str(tmp_path), "--ratio", "0.2", "--num-samples", "4"], 2),
        (["--model", "./absent", "--ratio", "0.2"], 1),
        (["eval"], 2),
        (["eval", "--model", "demo"], 2),
        (["eval", "--model", "demo", "--against", "demo", "--fidelity-tokens", "-1"], 2),
        (["compare", "--model", "demo"], 2),
        (["compare", "--model", "m", "--methods", "slef", "--text", "t", "--output", "o", "--ratio", "0.2"], 2),
    ]
    found = json.loads(python(PROGRAM, json.dumps([arguments for arguments, _ in cases]), json.dumps(HEAVY)))
    for (arguments, code), (returned, imported) in zip(cases, found, strict=True):
        assert (returned, imported) == (code, []), arguments


def test_a_plan_of_a_plain_local_model_needs_no_transformers(session_model: Path) -> None:
    arguments = [["plan", "--model", str(session_model), "--ratio", "0.2"]]
    found = json.loads(python(PROGRAM, json.dumps(arguments), json.dumps(("transformers", "scipy", "lm_eval"))))
    assert found == [[0, []]]


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    code = "import sys, llmfold; assert 'torch' not in sys.modules; from llmfold import *; print(sorted(dir()))"
    assert set(llmfold.__all__) - {"__version__"} <= set(eval(python(code)))
    assert set(llmfold.__all__) <= set(dir(llmfold))
    config = llmfold.FoldConfig("demo", ratio=0.2)
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(AttributeError, match="no attribute 'unfold'"):
        _ = llmfold.unfold  # type: ignore[attr-defined]
