"""Processes that hold a model each and answer questions about it, so that its memory is its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from llmfold.errors import CheckpointError, LlmfoldError

Ask = Callable[[str], Any]


@contextmanager
def worker(name: str, serve: Callable[..., None], *arguments: Any) -> Iterator[Ask]:
    """Start a process; what is yielded asks it.

    Args:
        name: of its model, for errors.
        serve: a function of a module, called there with its end of the connection and ``arguments``.
        arguments: what can be sent to a process.

    Raises:
        CheckpointError: when asked: the process died, or answers with an error.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()

    def ask(question: str) -> Any:
        try:
            ours.send(question)
            answer = ours.recv()
        except (EOFError, OSError) as error:
            raise CheckpointError(f"the process that timed {name} died, perhaps for lack of memory") from error
        if isinstance(answer, str):
            raise CheckpointError(answer)
        return answer

    try:
        yield ask
    finally:
        ours.close()
        process.join(10)
        process.kill()


def in_turn(asks: Sequence[Ask], question: str, rounds: int) -> list[list[Any]]:
    """Answers of all processes to a question, asked one after another, round by round."""
    return [[ask(question) for ask in asks] for _ in range(rounds)]


@contextmanager
def answering(connection: Connection, name: str) -> Iterator[Callable[[Mapping[str, Callable[[], Any]]], None]]:
    """What a process does: its block loads the model of ``name`` and calls what is yielded with what it can be asked.

    It ends when the other end closes; errors are answered as text.
    """

    def answer(answers: Mapping[str, Callable[[], Any]]) -> None:
        while True:
            connection.send(answers[connection.recv()]())

    try:
        yield answer
    except (EOFError, BrokenPipeError):
        return
    except LlmfoldError as error:
        connection.send(str(error))
    except Exception as error:  # a process that dies silently leaves nobody the wiser
        connection.send(f"{name} cannot be timed: {type(error).__name__}: {error}")
