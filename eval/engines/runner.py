"""What every engine's runner does: read jobs, answer each in a line of JSON. The standard library alone, any Python.

A runner is a script of its engine's environment: ``python run_ENGINE.py JOBS.json``. Lines it prints that begin with
``MARK`` are answers, so that an engine may print what it likes. A job is an object with

- ``name``, ``folder``: what to load, and what the answer is called;
- ``dtype``: of the files, which the engine is to compute in;
- ``remote_code``: whether the engine may run the code of the folder;
- ``prompt``: ids that are continued greedily, by ``new`` tokens, whatever token ends a text;
- ``ids``: ids whose every position is scored;
- ``texts``: what its tokenizer is to read;
- ``pre``: llama.cpp's name of how that cuts text into words, null where it finds it;
- ``full``: of the reference alone, a file for the log-probabilities of all tokens at all positions.

The answer has ``name`` and ``version``, then either ``error``, or ``top`` (of every position the ids and the
log-probabilities of the likeliest tokens), ``greedy`` (ids), ``seconds`` of that continuation and, where the engine
tells all of them, ``next``: the log-probabilities of every token after the last. ``read`` are the ids of the texts, or
why there are none. The reference's has ``among``: of every token it wrote, what ``top`` is of the texts.
"""

import json
import sys
import time
import traceback

MARK = "@@engine "
TOP = 20
TIE = 1e-3
"""Nats between two tokens that single precision may put in either order."""


def serve(answer):
    """Answer every job of the file that is named on the command line by ``answer(job)``, a dict or an exception."""
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        print(MARK + json.dumps({"name": job["name"], "begins": True}), flush=True)
        try:
            found = answer(job)
        except BaseException as error:
            traceback.print_exc()
            found = {"error": reason(error)}
            if isinstance(error, KeyboardInterrupt):
                raise
        print(MARK + json.dumps({"name": job["name"], **found}), flush=True)


def reason(error):
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def timed(work):
    """The result of ``work()`` and the seconds that it took."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def read_texts(tokenizer_of, texts):
    """The ids of the texts by the tokenizer that ``tokenizer_of()`` loads, or why there is none."""
    try:
        tokenizer = tokenizer_of()
        return [list(tokenizer(text)["input_ids"]) for text in texts]
    except Exception as error:
        return reason(error)


def likeliest(table):
    """Ids and log-probabilities of the likeliest tokens of every row of a torch tensor of log-probabilities."""
    values, ids = table.topk(min(TOP, table.shape[-1]))
    return [[i, v] for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
