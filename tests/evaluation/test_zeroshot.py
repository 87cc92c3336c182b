"""The tasks on local files are the stock ones, and their numbers are lm-eval's own."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from reading import teach
from support import forked_program, tiny_model

from llmfold import CheckpointError, UsageError
from llmfold.demo import demo_folder
from llmfold.evaluation import zeroshot as module
from llmfold.evaluation.defaults import AUTO
from llmfold.evaluation.evaluate import evaluate
from llmfold.evaluation.loading import Loading, opened
from llmfold.evaluation.options import EvaluationSettings
from llmfold.evaluation.suite import prepare
from llmfold.evaluation.zeroshot import GROUPS, Harness, expand

lm_eval = pytest.importorskip("lm_eval")

DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "boolq": [
        {"question": "is rain wet", "answer": True, "passage": "Rain is water."},
        {"question": "is snow hot", "answer": False, "passage": "Snow is frozen water."},
    ],
    "winogrande": [
        {"sentence": "The cup fell off the shelf so _ broke.", "option1": "cup", "option2": "shelf", "answer": "1"},
        {"sentence": "Ann called Eve because _ was late.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    ],
    "arc_easy": [
        {
            "question": "What falls?",
            "choices": {"text": ["rain", "sky", "sun"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        },
        {"question": "Two?", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answerKey": "2"},
    ],
    "openbookqa": [
        {"question_stem": "Rain is", "choices": {"text": ["dry", "wet"], "label": ["A", "B"]}, "answerKey": "B"},
    ],
    "piqa": [{"goal": "Stay dry.", "sol1": "Take a sieve.", "sol2": "Take an umbrella.", "label": 1}],
    "hellaswag": [
        {
            "activity_label": "Walking [title] in rain",
            "ctx_a": "A man walks.",
            "ctx_b": "he",
            "endings": ["opens an umbrella.  [step] He sings.", "swims.", "flies.", "is a cloud."],
            "label": "0",
        }
    ],
}
DOCUMENTS["arc_challenge"] = DOCUMENTS["arc_easy"]
FOLDERS = {"boolq": "super_glue/boolq", "arc_easy": "arc", "arc_challenge": "arc"}
STANDS_FOR = {"boolq": lambda document: {**document, "label": int(document["answer"])}}


def write_documents(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for task, documents in DOCUMENTS.items():
        lines = "".join(f"{json.dumps(document)}\n" for document in documents)
        (folder / f"{task}-validation.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"))


def stock_task(name: str, source: Path, scratch: Path) -> Any:
    """lm-eval's own task, on documents with the fields of the data set that it names."""
    from lm_eval.tasks import TaskManager

    change = STANDS_FOR.get(name, lambda document: document)
    local = scratch / f"{name}.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()
    local.write_text("".join(f"{json.dumps(change(json.loads(line)))}\n" for line in lines))
    folder = Path(lm_eval.__file__).parent / "tasks" / FOLDERS.get(name, name)
    stock = TaskManager(include_path=str(folder), include_defaults=False).task_index[name].yaml_path
    data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"validation": str(local)}}}
    changed = {"include": str(stock), "task": f"{name}_stock", **data, "test_split": None, "training_split": None}
    (scratch / f"{name}.yaml").write_text(yaml.safe_dump(changed))
    manager = TaskManager(include_path=str(scratch), include_defaults=False)
    return manager.load([f"{name}_stock"])["tasks"][f"{name}_stock"]


def requests(task: Any, limit: int | None = None) -> list[Any]:
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return [(request.request_type, request.args, request.idx) for request in task.instances]


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_requests_targets_and_metrics_are_those_of_the_stock_task(name: str, documents: Path, tmp_path: Path) -> None:
    ours, _ = Harness((name,), documents)._task(name)
    stock = stock_task(name, documents / f"{name}-validation.jsonl", tmp_path)
    assert requests(ours) == requests(stock)
    assert len(requests(ours)) >= len(DOCUMENTS[name]) * 2
    for mine, other in zip(ours.eval_docs, stock.eval_docs, strict=True):
        assert ours.doc_to_target(mine) == stock.doc_to_target(other)
    assert ours.aggregation() == stock.aggregation()
    assert ours.higher_is_better() == stock.higher_is_better()
    assert (ours.OUTPUT_TYPE, ours.VERSION) == (stock.OUTPUT_TYPE, stock.VERSION)
    assert ours.config.target_delimiter == stock.config.target_delimiter


@pytest.mark.parametrize("name", ["boolq", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "piqa"])
def test_requests_on_the_real_documents(name: str, data_dir: Path, tmp_path: Path) -> None:
    ours, _ = Harness((name,), data_dir / "zeroshot")._task(name)
    stock = stock_task(name, data_dir / "zeroshot" / f"{name}-validation.jsonl", tmp_path)
    assert requests(ours, limit=5) == requests(stock, limit=5)


def test_wikitext_is_read_as_pages(data_dir: Path) -> None:
    task, _ = Harness(("wikitext",), data_dir / "text")._task("wikitext")
    pages = [document["page"] for document in task.eval_docs]
    assert len(pages) == 62
    assert all(re.match(r"\s* = [^=\n]+ = \n", page) for page in pages)
    assert sorted(task.aggregation()) == ["bits_per_byte", "byte_perplexity", "word_perplexity"]


@pytest.mark.slow
def test_numbers_equal_those_of_lm_eval_on_its_own_command_line(documents: Path, tmp_path: Path) -> None:
    folder = demo_folder()
    settings = EvaluationSettings(str(folder), tasks="arc_easy,piqa,hellaswag", data_dir=str(documents))
    found = evaluate(settings).model.tasks
    command = ["lm_eval", "--model", "hf", "--model_args", f"pretrained={folder}"]
    command += ["--include_path", str(module._TASKS), "--tasks", "arc_easy_local,piqa_local,hellaswag_local"]
    command += ["--metadata", json.dumps({"data_dir": str(documents)}), "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out")]
    done = forked_program(lambda: runpy.run_module("lm_eval", run_name="__main__"), *command)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(path.read_text())["results"]
    for name, score in found.items():
        for metric, (value, error) in score.metrics.items():
            assert value == pytest.approx(theirs[f"{name}_local"][f"{metric},none"])
            other = theirs[f"{name}_local"][f"{metric}_stderr,none"]
            assert error == (pytest.approx(other) if isinstance(other, float) else None)
    assert found["arc_easy"].metrics.keys() == {"acc", "acc_norm"}
    assert (found["arc_easy"].documents, found["arc_easy"].shots) == (2, 0)


def test_groups_are_taken_apart_and_nothing_is_scored_twice() -> None:
    assert expand(["folding", "piqa", "boolq"], local=True) == (*GROUPS["folding"], "piqa")


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"there is no task 'bolq': did you mean boolq\?"):
        expand(["bolq"], local=True)


def test_missing_and_damaged_data_are_named(documents: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"piqa-validation\.jsonl does not exist: it should hold the documents of piqa"
    ):
        prepare("piqa", data_dir=tmp_path)
    (tmp_path / "piqa-validation.jsonl").write_text("{not json\n")
    with pytest.raises(UsageError, match=r"the data of piqa cannot be read from .*piqa-validation\.jsonl"):
        prepare("piqa", data_dir=tmp_path)
    with pytest.raises(UsageError, match=r"--data-dir .*nowhere is no folder"):
        prepare("piqa", data_dir=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--limit is 0"):
        prepare("piqa", data_dir=documents, limit=0)


def test_an_answer_longer_than_the_model_is_a_sentence(tmp_path: Path) -> None:
    long = {"goal": "Stay dry.", "sol1": "rain " * 2000, "sol2": "sun", "label": 1}
    (tmp_path / "piqa-validation.jsonl").write_text(f"{json.dumps(long)}\n")
    with (
        opened(demo_folder(), Loading(None)) as model,
        pytest.raises(
            CheckpointError, match=r"piqa cannot be scored .*: its longest answer takes \d+ tokens, the model has 512"
        ),
    ):
        Harness(("piqa",), tmp_path).run("piqa", model, demo_folder())


def test_an_id_that_is_no_row_is_a_sentence(documents: Path, tmp_path: Path) -> None:
    """A tokenizer to which tokens were added alone; an accelerator would stop for good at the first of them."""
    folder = teach(tiny_model(tmp_path / "small", vocab_size=16))
    with (
        opened(folder, Loading(None)) as model,
        pytest.raises(CheckpointError, match=r"piqa cannot be scored with dense: the tokenizer in .*small writes"),
    ):
        Harness(("piqa",), documents).run("piqa", model, folder, AUTO, "dense")


def test_finished_tasks_are_kept(documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EvaluationSettings("demo", tasks="piqa,openbookqa", data_dir=str(documents))
    output = tmp_path / "scores.json"
    ran: list[str] = []
    run = Harness.run

    def interrupted(self: Harness, name: str, *arguments: Any) -> Any:
        if name == "openbookqa":
            raise KeyboardInterrupt
        ran.append(name)
        return run(self, name, *arguments)

    def counted(self: Harness, name: str, *arguments: Any) -> Any:
        ran.append(name)
        return run(self, name, *arguments)

    monkeypatch.setattr(Harness, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings, output)
    monkeypatch.setattr(Harness, "run", counted)
    first = evaluate(settings, output)
    assert ran == ["piqa", "openbookqa"]
    assert evaluate(settings, output).model.tasks == first.model.tasks
    assert ran == ["piqa", "openbookqa"]
    (documents / "unrelated").touch()
    changed = write_documents(tmp_path / "changed")
    (changed / "piqa-validation.jsonl").write_text(
        (documents / "piqa-validation.jsonl").read_text().replace("sieve", "hat")
    )
    evaluate(EvaluationSettings("demo", tasks="piqa,openbookqa", data_dir=str(changed)), output)
    assert ran == ["piqa", "openbookqa", "piqa"]


def test_a_task_that_fails_takes_no_other_with_it(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llmfold: Any
) -> None:
    run = Harness.run

    def failing(self: Harness, name: str, *arguments: Any) -> Any:
        if name == "piqa":
            raise CheckpointError("piqa cannot be scored")
        return run(self, name, *arguments)

    monkeypatch.setattr(Harness, "run", failing)
    output = tmp_path / "scores.json"
    options = ("--tasks", "piqa,openbookqa", "--data-dir", documents, "--output", output)
    code, out, err = llmfold("eval", "--model", "demo", *options)
    assert code == 1
    assert "openbookqa, acc" in out
    assert err.splitlines()[-1] == "llmfold: piqa cannot be scored"
    assert "Not measured: piqa cannot be scored." in output.with_suffix(".md").read_text()


def test_without_lm_eval_the_sentence_says_what_to_install(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    with pytest.raises(UsageError, match=r"pip install 'llmfold\[eval\]'"):
        module._task_manager(str(documents))
