"""What hostile files are sent through, and what must hold: a sentence, nothing written outside, no code run."""

import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import signal
import socket
import stat
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from hostile_inputs import cards, configs, edited, folders, indexes, json_files, recipes, safetensors, tables, texts
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import llmfold
from llmfold import FoldConfig, LlmfoldError
from llmfold.checkpoint import Checkpoint, Journal, Source
from llmfold.checkpoint.base_card import carried_over
from llmfold.cli import main
from llmfold.config import FoldConfig as Options
from llmfold.data.plain_text import read_plain_text
from llmfold.data.tokens import load_tokenizer, token_ids
from llmfold.evaluation.cache import ResultCache
from llmfold.experiments.results import Results, Run, summarise
from llmfold.experiments.variants import parse_variants
from llmfold.hub.push import check_finished
from llmfold.pipeline.opening import open_source
from llmfold.pipeline.output_config import output_config
from llmfold.planning import make_plan
from llmfold.recipe import load_recipe
from llmfold.runtime.storage import replace_text

SECONDS = 20.0
"""Processor time that one input may take; a wait is ended from outside."""
BYTES = 1 << 30
"""Anonymous memory that one input may add."""
LONGEST = 4000
"""Characters of a sentence."""
SECRET = b"private: 3f9c1d"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "socket.connect")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")


class TooSlowError(BaseException):
    """An input took longer than it may."""


class _Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@dataclass
class World:
    """A sound model and what was folded from it, a private file, and places for inputs and outputs."""

    root: Path
    config: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make what is not there."""
        self.base, self.folded, self.outside = (self.root / name for name in ("base", "folded", "outside"))
        self.case, self.out, self.canary = (self.root / name for name in ("case", "out", "canary"))
        if not self.base.exists():
            self.outside.mkdir(parents=True)
            (self.outside / "secret.txt").write_bytes(SECRET)
            _tiny_model(self.base)
            llmfold.fold(
                str(self.base), method="paper", ratio=0.2, fidelity_tokens=0, output=str(self.folded), overwrite=True
            )
        self.config = json.loads((self.base / "config.json").read_text())
        checkpoint, _ = open_source(Source(self.base, "base", None))  # whatever libraries import and make is there then
        self.names = list(checkpoint.tensors)
        self.pickle = pickle.dumps(_Evil(self.canary))
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("archive/data.pkl", self.pickle)
            file.writestr("../../canary", b"x")
        self.zip = archive.getvalue()

    def clean(self) -> None:
        """An empty case and an empty output."""
        for folder in (self.case, self.out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def like(self, folder: Path, *others: str) -> Path:
        """The case with the files of a sound folder, but for some."""
        for path in folder.iterdir():
            if path.name not in others and path.is_file():
                os.link(path, self.case / path.name)
        return self.case

    def intact(self) -> str | None:
        """What was changed outside the case and the output, in words."""
        if self.canary.exists():
            return "code of the input was run"
        if sorted(os.listdir(self.outside)) != ["secret.txt"] or (self.outside / "secret.txt").read_bytes() != SECRET:
            return "a file outside was changed"
        if {*os.listdir(self.root)} - {"base", "folded", "outside", "case", "out", "home"}:
            return f"left behind: {sorted(os.listdir(self.root))}"
        for path in self.out.rglob("*"):
            if path.is_symlink():
                return f"the output holds a link, {path.name!r}"
            if path.is_file() and path.stat().st_size < 10_000_000 and SECRET in path.read_bytes():
                return f"the private file was copied into {path.name!r}"
        return None


def _tiny_model(folder: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(folder)
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz .\n", 3)}
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **letters}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Tiny\n")


Target = Callable[[World], st.SearchStrategy[Any]]
Step = Callable[[World, Any], None]


@dataclass(frozen=True)
class Kind:
    """A kind of input: its share of all, what is drawn, how it is put into the case, and what it is sent through."""

    share: float
    drawn: Target
    place: Step
    send: Step


def _opened(world: World, _: object = None) -> None:
    """All that a fold does with a folder's small files and headers."""
    source = Source(world.case, "tiny", None)
    checkpoint, shape = open_source(source)
    for name in checkpoint.tensors:
        checkpoint.read(name)
    checkpoint.copy_side_files(world.out)
    carried_over(world.case)
    plan = make_plan(shape, checkpoint.tensors, FoldConfig(model="m", ratio=0.2, method="paper"))
    config = json.dumps(output_config(checkpoint.config, plan), ensure_ascii=False)
    replace_text(world.out / "config.json", config)


def _place_header(world: World, data: bytes) -> None:
    world.like(world.base, "model.safetensors")
    (world.case / "model.safetensors").write_bytes(data)


def _header(world: World, _: object) -> None:
    checkpoint = Checkpoint.open(world.case)
    for name in list(checkpoint.tensors)[:10]:
        checkpoint.read(name)
    _opened(world)


def _place_index(world: World, data: bytes) -> None:
    world.like(world.base, "model.safetensors")
    for name in SHARDS:
        os.link(world.base / "model.safetensors", world.case / name)
    (world.case / "model.safetensors.index.json").write_bytes(data)


SHARDS = ["a.safetensors", "model-00001-of-00002.safetensors"]


def _place_config(world: World, data: bytes) -> None:
    world.like(world.base, "config.json")
    (world.case / "config.json").write_bytes(data)


SIDES = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "processor_config.json")
SIDE_KEYS = (
    *("tokenizer_class", "auto_map", "name_or_path", "tokenizer_file", "bos_token", "added_tokens_decoder"),
    *("chat_template", "eos_token_id", "bos_token_id", "model_max_length", "cache_dir", "_name_or_path"),
)


def _place_files(world: World, files: dict[str, bytes]) -> None:
    world.like(world.base, *files)
    for name, data in files.items():
        (world.case / name).write_bytes(data)


def _sides(world: World) -> st.SearchStrategy[dict[str, bytes]]:
    base = json.loads((world.base / "tokenizer_config.json").read_text())
    contents: dict[str, Any] = dict.fromkeys(SIDES, json_files(base, SIDE_KEYS))
    adapter = json_files({"base_model_name_or_path": "x/y", "peft_type": "LORA", "r": 8}, ("modules_to_save",))
    contents |= {"README.md": cards(), "adapter_config.json": adapter}
    one = st.sampled_from([*contents, "README.md"])
    return st.lists(one, min_size=1, max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: contents[name] for name in names})
    )


def _place_entries(world: World, entries: list[tuple[bytes, str]]) -> None:
    world.like(world.base)
    _add_entries(world, entries)


def _add_entries(world: World, entries: list[tuple[bytes, str]]) -> None:
    for name, kind in entries:
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError):
            _place(world, name, kind)


LINKS = {
    "to /etc/passwd": b"/etc/passwd",
    "to /dev/zero": b"/dev/zero",
    "to the parent": b"..",
    "to a file inside": b"config.json",
    "to nowhere": b"absent",
}


def _place(world: World, name: bytes, kind: str) -> None:
    path = os.path.join(os.fsencode(world.case), name)
    if os.path.islink(os.path.dirname(path)):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    contents = {"empty": b"", "pickle": world.pickle, "zip": world.zip, "text": b"{}"}
    if kind in contents:
        with open(path, "wb") as file:
            file.write(contents[kind])
    elif kind in LINKS:
        os.symlink(LINKS[kind], path)
    elif kind == "to the secret":
        os.symlink(os.fsencode(world.outside / "secret.txt"), path)
    elif kind in ("to itself", "a loop of two"):
        other = path if kind == "to itself" else path + b".loop"
        os.symlink(other, path)
        if other != path:
            os.symlink(path, other)
    elif kind == "hard link":
        os.link(world.base / "config.json", path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        with contextlib.suppress(PermissionError):
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    elif kind == "socket":
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as made:
            made.bind(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 40)


def _tokenizer(world: World, _: object) -> None:
    load_tokenizer(world.case)
    token_ids(world.case, "it was a dark and stormy night", 64)


def _tokenizers(world: World) -> st.SearchStrategy[dict[str, bytes]]:
    fast, about = (json.loads((world.base / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    return st.fixed_dictionaries(
        {"tokenizer.json": edited(fast, ("normalizer", "decoder", "truncation", "padding", "added_tokens"))},
        optional={"tokenizer_config.json": json_files(about, SIDE_KEYS)},
    )


def _placed(name: str) -> Step:
    """An input that is the content of one file."""

    def place(world: World, data: bytes) -> None:
        (world.case / name).write_bytes(data)

    return place


def _nothing(world: World, value: object) -> None:
    """For an input that is in no file."""


def _recipe(world: World, _: object) -> None:
    Options(**{"model": "m", **load_recipe(world.case / "recipe.yaml")})


def _variants(world: World, text: str) -> None:
    for variant in parse_variants(text):
        Options(model="m", ratio=0.2, **variant.fold_options("x.txt"))


_METHODS = ("paper", "self", "weights", "calibrated", "random", "wanda-sp")
_VALUES = st.sampled_from(
    ["0", "[" * 5000, "0x" + "f" * 9000, "!!int ''", "2024-99-99", "*x", "{a: 1}", "&a [*a]", "1" * 9000]
)
_OPTION = st.builds(
    "{}={}".format, st.sampled_from(["refine", "align", "data", "seed", "cluster"]), _VALUES | st.text(max_size=5)
)
_VARIANT = st.builds(
    lambda name, pairs: ":".join([name, ",".join(pairs)]), st.sampled_from(_METHODS), st.lists(_OPTION, max_size=3)
)


def _place_report(world: World, data: bytes) -> None:
    world.like(world.folded, "report.json")
    (world.case / "report.json").write_bytes(data)


def _report(world: World, _: object) -> None:
    check_finished(world.case)


def _reports(world: World) -> st.SearchStrategy[bytes]:
    base = json.loads((world.folded / "report.json").read_text())
    quality = {
        "model": {"name": "x", "perplexity": None, "tasks": {}},
        "dense": None,
        "fidelity": {"kl": 0.1, "top1": 0.9},
    }
    return json_files({**base, "quality": quality} if not base["quality"] else base, ("notes", "quality", "base_card"))


RUN = Run("key", "paper", {"ratio": 0.2}, 0, None, "no data", 9.0, 0.1, 0.2, 0.9, 100, 0.2, 0.3, 1.0)


def _comparison(world: World, _: object) -> None:
    results = Results.load(world.case)
    rows = [summarise([run]) for run in results.runs.values()]
    results.save({}, rows)


def _evaluation(world: World, _: object) -> None:
    results = ResultCache(world.case / "eval.json")
    results.get("new", lambda: {"x": 1})


def _journal(world: World, _: object) -> None:
    with Journal.open(world.case / "journal.jsonl", {"source": "x", "config": {"ratio": 0.2}}) as journal:
        journal.append("layer-9", {}, {})
        journal.units_beside()


def _journals(_: World) -> st.SearchStrategy[bytes]:
    head = {"source": "x", "config": {"ratio": 0.2}}
    line = json_files({"unit": "layer-0", "digests": {"a": "0" * 64}, "record": {"mlp": {}}})
    lines = st.lists(line, max_size=3)
    return st.builds(
        lambda first, rest: b"\n".join([first, *rest, b""]),
        json_files(head) | st.just(b'{"source": "x", "config": {"ratio": 0.2}}'),
        lines,
    )


def _place_text(world: World, made: tuple[str, bytes]) -> None:
    suffix, data = made
    (world.case / f"text{suffix}").write_bytes(data)


def _text(world: World, made: tuple[str, bytes]) -> None:
    path = world.case / f"text{made[0]}"
    read_plain_text(path)
    read_plain_text(path, characters=10)


def _place_fold(world: World, made: tuple[bytes, list[tuple[bytes, str]]]) -> None:
    config, entries = made
    _place_config(world, config)
    _add_entries(world, entries)


def _fold(world: World, _: object) -> None:
    """The whole command, on what may well be accepted."""
    words = ["--model", str(world.case), "--ratio", "0.2", "--method", "paper", "--output", str(world.out / "x")]
    errors, quiet = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(quiet):
        code = main([*words, "--fidelity-tokens", "0"])
    said = errors.getvalue().splitlines()
    if code not in (0, 1, 2) or "unexpected" in errors.getvalue():
        raise AssertionError(f"exit code {code}: {said[-1:]}")
    if code:
        raise LlmfoldError(said[-1] if said else "")


_ROW = b'{"text": "' + b"a b " * 80_000_000 + b'"}'
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lists": ("config.json", lambda: b'{"a":[' + b"[]," * 10_000_000 + b"0]}"),
    "few lists": ("config.json", lambda: b'{"a":[' + b"[]," * 490_000 + b"0]}"),
    "strings": ("config.json", lambda: b'{"a":[' + b'"ab",' * 990_000 + b"0]}"),
    "a long string": ("config.json", lambda: b'{"a":"' + b"a" * 31_000_000 + b'"}'),
    "a long file": ("config.json", lambda: b" " * 40_000_000 + b"{}"),
    "many keys, one twice": (
        "index",
        lambda: b'{"weight_map":{' + b",".join(b'"%d":1' % i for i in range(990_000)) + b',"7":1}}',
    ),
    "a header of lists": ("header", lambda: _with_length(b'{"a":[' + b"[]," * 490_000 + b"0]}")),
    "a header of names": ("header", lambda: _many_names()),
    "a deep recipe": ("recipe", lambda: b"ratio: " + b"[" * 40_000),
    "a long recipe": ("recipe", lambda: b"layers:\n" + b"".join(b"  %d: {mlp: .1}\n" % i for i in range(2_000_000))),
    "a recipe of keys": ("recipe", lambda: b"".join(b"k%d: 1\n" % i for i in range(6_000)) + b"k7: 1\n"),
    "letters": (".txt.gz", lambda: gzip.compress(b"a b " * 80_000_000, 1)),
    "letters more tightly": (".txt.xz", lambda: lzma.compress(b"a b " * 80_000_000, preset=0)),
    "one line": (".txt.gz", lambda: gzip.compress(b"[" + b"[]," * 80_000_000, 1)),
    "one row": (".jsonl.gz", lambda: gzip.compress(_ROW, 1)),
    "a card of breaks": ("README.md", lambda: b"---\n" + b"\n" * 1_000_000),
}
"""What is small for what it stands for: where it is sent, and how it is made."""


def _many_names() -> bytes:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(entry % number for number in range(50_000)) + b"}"
    return _with_length(text)


def _with_length(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


_BOMB_STEPS: dict[str, tuple[Step, Step]] = {
    "config.json": (_place_config, _opened),
    "index": (_place_index, _opened),
    "header": (_place_header, _header),
    "recipe": (_placed("recipe.yaml"), _recipe),
    "README.md": (lambda world, data: _place_files(world, {"README.md": data}), _opened),
}


def _place_bomb(world: World, name: str) -> None:
    kind, make = BOMBS[name]
    packed = world.root / "home" / f"{name}.bomb"  # made once
    if not packed.exists():
        packed.parent.mkdir(exist_ok=True)
        packed.write_bytes(make())
    data = packed.read_bytes()
    if kind in _BOMB_STEPS:
        _BOMB_STEPS[kind][0](world, data)
    else:
        _place_text(world, (kind, data))


def _bomb(world: World, name: str) -> None:
    kind, _ = BOMBS[name]
    if kind in _BOMB_STEPS:
        _BOMB_STEPS[kind][1](world, None)
    else:
        _text(world, (kind, b""))


_HARMLESS = st.sampled_from(
    [b"[/x].txt", b"a\nb.txt", b"\xff.txt", b"license\xff", b"\x1b[31mred.txt", b"..x", b"notice\n", b"license [bold]"]
)


def _folds(world: World) -> st.SearchStrategy[tuple[bytes, list[tuple[bytes, str]]]]:
    odd = st.sampled_from(["\ud800", "[/x]", "\x1b[31m", "{{ x }}", "<script>", 10**30, [[[[]]]], -1, {"a": "\udfff"}])
    config = st.dictionaries(
        st.sampled_from(["note", "_x", "bos_token_id", "eos_token_id", "pad_token_id", "task"]), odd, max_size=2
    )
    entries = st.lists(st.tuples(_HARMLESS, st.sampled_from(["text", "empty", "pickle", "zip"])), max_size=2)
    return st.tuples(config.map(lambda extra: json.dumps({**world.config, **extra}).encode()), entries)


TARGETS: dict[str, Kind] = {
    "safetensors header": Kind(
        0.24, lambda w: safetensors((w.base / "model.safetensors").read_bytes(), w.names), _place_header, _header
    ),
    "index": Kind(0.12, lambda w: indexes(w.names, SHARDS), _place_index, _opened),
    "config.json": Kind(0.22, lambda w: configs(w.config), _place_config, _opened),
    "links, pipes, disguises": Kind(0.1, lambda _: folders(), _place_entries, _opened),
    "side files and card": Kind(0.1, _sides, _place_files, _opened),
    "tokenizer": Kind(0.02, _tokenizers, _place_files, _tokenizer),
    "recipe": Kind(0.08, lambda _: recipes(), _placed("recipe.yaml"), _recipe),
    "variants of compare": Kind(0.001, lambda _: st.lists(_VARIANT, max_size=3).map(",".join), _nothing, _variants),
    "report.json": Kind(0.04, _reports, _place_report, _report),
    "compare.json": Kind(
        0.03,
        lambda _: json_files({"format": 1, "dense": {"key": "x"}, "runs": [vars(RUN)]}, ("finished",)),
        _placed("compare.json"),
        _comparison,
    ),
    "results of eval": Kind(
        0.01,
        lambda _: json_files({"format": 1, "finished": {"key": {"value": 1.0}}}),
        _placed("eval.json"),
        _evaluation,
    ),
    "journal": Kind(0.01, _journals, _placed("journal.jsonl"), _journal),
    "text": Kind(0.03, lambda _: texts(), _place_text, _text),
    "table of texts": Kind(0.002, lambda _: tables(), _place_text, _text),
    "bombs": Kind(0.00016, lambda _: st.sampled_from(list(BOMBS)), _place_bomb, _bomb),
    "whole fold": Kind(0.0005, _folds, _place_fold, _fold),
}
"""By name."""


@dataclass
class Watch:
    """Sees files opened for writing, and code run, by the interpreter's own events."""

    world: World
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin to listen; the interpreter never stops telling."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _RUNS:
            self.seen.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._wrote(event, arguments[0])
        elif event in _CHANGES:
            self._wrote(event, arguments[event in ("os.link", "os.symlink", "os.rename")])

    def _wrote(self, event: str, place: Any) -> None:
        if isinstance(place, int) or place is None:
            return
        path = os.path.abspath(os.fsdecode(place))
        allowed = (self.world.out, self.world.case, self.world.root / "home")
        if not any(path.startswith(str(folder)) for folder in allowed) and path not in ("/dev/null",):
            self.seen.append(f"{event} {path}")


@dataclass
class Verdict:
    """What became of an input: ``fault`` is None where all is well, ``sentence`` None where it was accepted."""

    fault: str | None
    sentence: str | None
    seconds: float
    memory: int


def judge(world: World, watch: Watch, kind: Kind, value: Any) -> Verdict:
    """Put one input into an empty case, send it, and say what happened; only what it is sent through is watched."""
    world.clean()
    kind.place(world, value)
    watch.seen.clear()
    before = _anonymous(reset=True)
    fault: str | None = None
    sentence: str | None = None
    start = time.process_time()
    try:
        with _limited(), _settled():
            watch.on = True
            kind.send(world, value)
    except LlmfoldError as error:
        sentence = str(error)
        fault = _bad_sentence(sentence)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} [{_where(error)}]"
    finally:
        watch.on = False
    seconds = time.process_time() - start
    memory = max(0, _anonymous() - before)
    if fault is None and watch.seen:
        fault = f"outside: {watch.seen[0]}"
    if fault is None and memory > BYTES:
        fault = f"took {memory >> 20} MiB"
    return Verdict(fault or world.intact(), sentence, seconds, memory)


def _bad_sentence(text: str) -> str | None:
    if not text.strip() or "\n" in text or len(text) > LONGEST or not text.isprintable():
        return f"not one printable sentence: {text[:120]!r}"
    return None


def _where(error: BaseException) -> str:
    """The last place of llmfold's own in a traceback, and the last of all."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [f"{Path(name).name}:{line}" for name, line in frames if "/llmfold/" in name]
    last = f"{Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
    return " ".join(dict.fromkeys([*own[-2:], last]))


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlowError(f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """What transformers logs of odd configs is not printed."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _anonymous(reset: bool = False) -> int:
    """Bytes of resident memory: those of now, the peak being forgotten, or the peak since."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    word = "VmRSS" if reset else "VmHWM"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(word):
            return int(line.split()[1]) * 1024
    return 0
