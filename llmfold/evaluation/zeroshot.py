"""Zero-shot accuracy through lm-eval: its tasks, its model wrapper, its numbers.

With a folder of JSON lines the tasks of ``llmfold/evaluation/tasks`` stand in for the stock ones of the same name:
prompts, targets and metrics are the same, only the data comes from the folder, whose files hold validation splits.
"""

import contextlib
import difflib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from llmfold.data.tokenizer import load_tokenizer
from llmfold.data.tokens import check_ids, input_device
from llmfold.errors import CheckpointError, UsageError
from llmfold.evaluation.defaults import AUTO
from llmfold.models.settings import text_config
from llmfold.runtime.storage import file_sha256

FOLDING = "folding"
GROUPS = {FOLDING: ("boolq", "winogrande", "arc_easy", "arc_challenge")}
"""The four tasks of the model folding paper (arXiv 2502.10216, table 4)."""
_LOCAL = "_local"
_TASKS = Path(__file__).with_name("tasks")
_CPU_BATCH = 8


@dataclass(frozen=True)
class TaskScore:
    """One task on one model.

    Attributes:
        task: its stock name.
        metrics: by name, such as ``acc``, ``acc_norm`` or ``word_perplexity``: value and standard error (None where
            lm-eval gives none).
        documents: how many were scored.
        shots: examples in the prompt.
        version: of the task in lm-eval.
        data: where the documents come from.
    """

    task: str
    metrics: dict[str, tuple[float, float | None]]
    documents: int
    shots: int
    version: str
    data: str


@dataclass(frozen=True)
class Harness:
    """Tasks ready to run; making one reads their data, so that what is missing is known before a model is loaded.

    Attributes:
        names: tasks by their stock names, groups taken apart.
        data_dir: folder of JSON lines; None for the hub.
        limit: most documents of a task; None for all.
        prefix: of the last two where they are options, for messages.
    """

    names: tuple[str, ...]
    data_dir: Path | None = None
    limit: int | None = None
    prefix: str = "--"
    _ready: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def prepare(self) -> None:
        """Read the data of all tasks.

        Raises:
            UsageError: an unknown task, missing data.
        """
        for name in self.names:
            self._task(name)

    def run(self, name: str, model: Any, folder: Path, batch: int | str = AUTO, called: str | None = None) -> TaskScore:
        """Score one task.

        Args:
            name: one of ``names``.
            model: loaded, in evaluation mode.
            folder: gives the tokenizer.
            batch: requests in one forward pass, or ``auto``: what fits on a GPU, 8 elsewhere.
            called: the model, in errors; None: as ``folder``.

        Raises:
            CheckpointError: lm-eval fails with this model, or the tokenizer is not the model's.
        """
        task, local = self._task(name)
        if batch == AUTO and input_device(model).type == "cpu":
            batch = _CPU_BATCH
        with _quiet():
            from lm_eval import evaluator
            from lm_eval.models.huggingface import HFLM

            wrapped = HFLM(pretrained=model, tokenizer=load_tokenizer(folder), batch_size=batch)
            wrapped.tok_encode = _checked(wrapped.tok_encode, folder, int(text_config(model.config).vocab_size))
            wrapped._device = input_device(model)  # an offloaded model says "meta", where no input can go
            # It would ask git for the state of the working directory, and git complains where that is no repository.
            silent = mock.patch.object(evaluator, "get_git_commit_hash", return_value=None, create=True)
            try:
                with silent:
                    results = evaluator.simple_evaluate(
                        wrapped,
                        tasks=[task],
                        task_manager=self._manager(),  # without one it reads the files of all its tasks, twice
                        num_fewshot=0,
                        limit=self.limit,
                        log_samples=False,
                        bootstrap_iters=100,
                    )
            except Exception as error:  # a harness of thousands of tasks raises whatever its parts do
                expected = isinstance(error, CheckpointError)
                reason = f"{'' if expected else f'{type(error).__name__}: '}{error}"
                reason = reason if str(error) else _unsaid(task, wrapped, error)
                raise CheckpointError(f"{name} cannot be scored with {called or folder.name}: {reason}") from error
        return _score(name, local, self.describe(name), results)

    def key(self, name: str) -> list[Any]:
        """What decides the numbers of a task beside the model."""
        digest = file_sha256(self._file(name)) if self.data_dir else None
        return [name, digest, self.limit, harness_version()]

    def describe(self, name: str) -> str:
        """Where the documents of a task come from."""
        if not self.data_dir:
            return "hub, stock task"
        mapped = ", answer true/false read as the label yes/no, passages as they are there" if name == "boolq" else ""
        return f"{self._file(name).name}, original fields{mapped}"

    def _task(self, name: str) -> tuple[Any, str]:
        if name not in self._ready:
            local = name + _LOCAL if self.data_dir else name
            if self.data_dir:
                self._check_file(name)
            try:
                with _quiet():
                    self._ready[name] = (self._manager().load([local])["tasks"][local], local)
            except Exception as error:  # data sets are read by whatever loader the task names
                where = (
                    str(self._file(name))
                    if self.data_dir
                    else f"the hub: check the network, or pass {self.prefix}data-dir"
                )
                reason = f" ({type(error).__name__}: {error})" if self.data_dir else f" ({type(error).__name__})"
                raise UsageError(f"the data of {name} cannot be read from {where}{reason}") from error
        task, local = self._ready[name]
        return task, local

    def _manager(self) -> Any:
        return _task_manager(str(self.data_dir) if self.data_dir else None)

    def _file(self, name: str) -> Path:
        assert self.data_dir is not None
        return self.data_dir / _local_files()[name]

    def _check_file(self, name: str) -> None:
        if name not in _local_files():
            able = ", ".join(sorted(_local_files()))
            raise UsageError(f"{name} cannot read local data: choose from {able}, or drop {self.prefix}data-dir")
        if not self._file(name).is_file():
            raise UsageError(f"{self._file(name)} does not exist: it should hold the documents of {name}")


def expand(names: Sequence[str], *, local: bool) -> tuple[str, ...]:
    """Take the groups of llmfold apart and drop what stands twice.

    Raises:
        UsageError: a name that neither llmfold nor lm-eval knows.
    """
    flat = [task for name in names for task in GROUPS.get(name, (name,))]
    known = set(_local_files())
    unknown = [name for name in flat if name not in known]
    if unknown and not local:
        known |= set(_task_manager(None).all_subtasks)
        unknown = [name for name in flat if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*known, *GROUPS], 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted({*_local_files(), *GROUPS}))}"
        raise UsageError(f"there is no task {unknown[0]!r}: {hint}")
    return tuple(dict.fromkeys(flat))


def harness_version() -> str:
    """Version of lm-eval.

    Raises:
        UsageError: it is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lm-eval")
    except PackageNotFoundError as error:
        raise UsageError("zero-shot tasks need the eval extra: pip install 'llmfold[eval]'") from error


@cache
def _local_files() -> dict[str, str]:
    """Stock name of every task that can read local data, and the name of its file."""
    import yaml

    class _Loader(yaml.SafeLoader):
        """Reads functions of lm-eval's task files as their names."""

    _Loader.add_constructor("!function", lambda loader, node: node.value)
    files = {}
    for path in sorted(_TASKS.glob("*.yaml")):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        if "dataset_kwargs" in content:
            files[content["task"].removesuffix(_LOCAL)] = content["dataset_kwargs"]["file"]
    return files


def _task_manager(data_dir: str | None) -> Any:
    harness_version()
    if data_dir is None:
        return _stock_tasks()
    with _quiet():
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=str(_TASKS), include_defaults=False, metadata={"data_dir": data_dir})


@cache
def _stock_tasks() -> Any:
    """lm-eval's own index, which takes seconds to build."""
    with _quiet():
        from lm_eval.tasks import TaskManager

        return TaskManager()


def _checked(encode: Callable[..., list[int]], folder: Path, rows: int) -> Callable[..., list[int]]:
    """lm-eval's way from a text to ids, which refuses ids that are no rows of the embedding."""

    def encode_checked(*arguments: Any, **options: Any) -> list[int]:
        ids = encode(*arguments, **options)
        check_ids(folder, ids, rows)
        return ids

    return encode_checked


def _unsaid(task: Any, wrapped: Any, error: Exception) -> str:
    """Why lm-eval gave up without a word: an answer that does not fit into the positions, or what it asserts there."""
    longest = max(len(wrapped.tok_encode(str(request.args[-1]))) for request in task.instances)
    if longest > wrapped.max_length:
        return f"its longest answer takes {longest} tokens, the model has {wrapped.max_length} positions"
    return f"lm-eval stops at {traceback.extract_tb(error.__traceback__)[-1].line!r}"


def _score(name: str, local: str, data: str, results: dict[str, Any]) -> TaskScore:
    """Pick the metrics out of lm-eval's results, whose keys look like ``acc,none`` and ``acc_stderr,none``."""
    values = {key.split(",")[0]: value for key, value in results["results"][local].items()}
    metrics = {}
    for metric, value in values.items():
        if isinstance(value, float) and not metric.endswith("_stderr"):
            error = values.get(f"{metric}_stderr")
            metrics[metric] = (value, error if isinstance(error, float) else None)
    return TaskScore(
        name,
        metrics,
        int(results["n-samples"][local]["effective"]),
        int(results["n-shot"].get(local) or 0),
        str(results["versions"].get(local)),
        data,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep notices of lm-eval and datasets out of the terminal, and progress bars out of files."""
    import datasets

    with contextlib.ExitStack() as stack:
        for name in ("lm_eval", "datasets", "transformers"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        yield
