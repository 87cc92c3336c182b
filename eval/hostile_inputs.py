"""Hypothesis strategies of files that somebody made to do harm: JSON, safetensors, YAML, folders, texts."""

import copy
import gzip
import json
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Raw:
    """Bytes that stand in JSON as they are."""

    data: bytes

    def __repr__(self) -> str:
        """Short, however long the bytes are."""
        return f"Raw({self.data[:40]!r}…, {len(self.data)} bytes)"


@dataclass(frozen=True)
class Twice:
    """An object whose first key stands twice."""

    value: dict[str, Any]


def encode(value: Any) -> bytes:
    """JSON, with what Python's own writer would refuse."""
    match value:
        case Raw():
            return value.data
        case Twice():
            pairs = [*list(value.value.items())[:1], *value.value.items()]
            return b"{" + b",".join(encode(k) + b":" + encode(v) for k, v in pairs) + b"}"
        case dict():
            return b"{" + b",".join(encode(str(k)) + b":" + encode(v) for k, v in value.items()) + b"}"
        case list() | tuple():
            return b"[" + b",".join(map(encode, value)) + b"]"
    return json.dumps(value).encode()


DEPTHS = (50, 120, 240, 330, 480, 700, 900, 100_000)
RAW = st.sampled_from(
    [
        *(Raw(b"[" * depth + b"]" * depth) for depth in DEPTHS),
        *(Raw(b'{"a":' * depth + b"1" + b"}" * depth) for depth in DEPTHS),
        *(Raw(b"1" * digits) for digits in (400, 4300, 4301, 100_000)),
        *(Raw(b"[" * 100_000), Raw(b"-0"), Raw(b"1e999"), Raw(b"-1e999"), Raw(b"1e-999"), Raw(b"0x10"), Raw(b"")),
        *(Raw(b"NaN"), Raw(b"Infinity"), Raw(b"-Infinity"), Raw(b"\xff"), Raw(b'"\xff\xfe"'), Raw(b'"\\ud800"')),
        *(Raw(b"[" + b"[]," * 20_000 + b"0]"), Raw(b'"' + b"a" * 100_000 + b'"'), Raw(b"[,]"), Raw(b"\0")),
    ]
)
WORDS = st.sampled_from(
    [
        *("", ".", "..", "../secret.txt", "/etc/passwd", "../../outside/secret.txt", "C:\\x", "a/b", "a\0b", "~", "%s"),
        *("NaN", "\ud800", "\x1b[31mred", "a\nb", "[/x]", "{0}", "{{ 7 * 7 }}", "<script>", "llama", "float32", "full"),
        *("__class__", "to_dict", "self", "LlamaTokenizer", "os", "Trainer", "silu", "1" * 5000, "\u202e", "x" * 3000),
    ]
) | st.text(max_size=6)
INTEGERS = st.sampled_from([0, -1, 1, 2, 3, 7, 2**31, 2**32, 10**9, 2**63, 2**64, -(2**63), 10**30, 10**3000])
SCALARS = st.none() | st.booleans() | INTEGERS | st.integers(-4, 200) | st.floats() | WORDS
JUNK = st.recursive(
    SCALARS | RAW,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def edited(draw: st.DrawFn, base: dict[str, Any], more: tuple[str, ...] = (), values: Any = JUNK) -> bytes:
    """JSON like ``base`` in which up to three places hold something else, and now and then its bytes are damaged."""
    tree = copy.deepcopy(base)
    for _ in range(draw(st.integers(0, 3))):
        _edit(draw, tree, more, values)
    data = encode(tree)
    return draw(damaged(data)) if draw(st.integers(0, 9)) == 0 else data


def _edit(draw: st.DrawFn, tree: Any, more: tuple[str, ...], values: Any) -> None:
    """Change one place of a tree of dicts and lists."""
    place = tree
    for _ in range(draw(st.integers(0, 3))):
        inner = [
            each for each in (place.values() if isinstance(place, dict) else place) if isinstance(each, dict | list)
        ]
        if not inner:
            break
        place = draw(st.sampled_from(inner))
    if isinstance(place, list):
        if place and draw(st.booleans()):
            place[draw(st.integers(0, len(place) - 1))] = draw(values)
        else:
            place.append(draw(values))
        return
    key = draw(st.sampled_from([*place, *more]) if place or more else WORDS)
    action = draw(st.sampled_from(["set", "set", "set", "delete", "odd", "twice"]))
    if action == "delete":
        place.pop(key, None)
    elif action == "odd":
        place[draw(WORDS)] = draw(values)
    elif action == "twice" and isinstance(place.get(key), dict) and place[key]:
        place[key] = Twice(place[key])
    else:
        place[key] = draw(values)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with one place overwritten, cut or doubled."""
    at = draw(st.integers(0, len(data)))
    patch = draw(RAW.map(lambda raw: raw.data) | st.binary(max_size=6) | st.just(b"\xef\xbb\xbf"))
    return data[:at] + patch + data[at + draw(st.integers(0, 12)) :]


def json_files(base: dict[str, Any], more: tuple[str, ...] = (), values: Any = JUNK) -> st.SearchStrategy[bytes]:
    """Contents of a JSON file that should look like ``base``."""
    wild = JUNK.map(encode) | st.binary(max_size=60)
    return st.one_of(*[edited(base, more, values)] * 6, wild)


ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3"]) | JUNK,
        "type": st.sampled_from(["linear", "su", "default"]) | JUNK,
        "rope_theta": st.sampled_from([10000.0, 0, -1.0, 1e308, float("inf"), float("nan")]) | JUNK,
        "factor": st.sampled_from([2.0, 0, -1]) | JUNK,
        **{key: st.sampled_from([1.0, 4.0, 0]) | JUNK for key in ("low_freq_factor", "high_freq_factor", "beta_fast")},
        **{key: st.lists(st.floats(), max_size=5) | JUNK for key in ("short_factor", "long_factor")},
        "original_max_position_embeddings": st.sampled_from([64, 0, -1]) | JUNK,
        "partial_rotary_factor": st.sampled_from([0.5, 0, 3]) | JUNK,
    },
)
CONFIG_KEYS = (
    *("torch_dtype", "dtype", "rope_scaling", "rope_parameters", "rope_theta", "per_layer_config", "auto_map"),
    *("quantization_config", "compression_config", "architectures", "layer_types", "sliding_window", "pretraining_tp"),
    *("use_sliding_window", "max_window_layers", "head_dim", "attention_bias", "mlp_bias", "to_dict", "__class__"),
    *("num_labels", "id2label", "problem_type", "return_dict", "attn_implementation", "_attn_implementation"),
    *("model_type", "hidden_act", "rms_norm_eps", "num_hidden_layers", "vocab_size", "tie_word_embeddings"),
    *("base_model_tp_plan", "attribute_map", "get_text_config", "validate", "_name_or_path", "generation_config"),
)
CONFIG_VALUES = st.one_of(
    JUNK,
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gpt2", "silu", "gelu", "bfloat16", "float64", "auto"]),
    st.sampled_from([1, 2, 4, 8, 16, 32, 48, 64, 128, 1e-6]),
    ROPE,
    st.dictionaries(st.sampled_from(["0", "1", "00", "-1", "9" * 5000, "٣"]), JUNK, max_size=2),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", [], {}, 3]), max_size=3),
)


def configs(base: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Contents of a config.json."""
    return json_files(base, CONFIG_KEYS, CONFIG_VALUES)


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "F32", "F8_E4M3", "I64", "F4", "BOOL", "C64", "", "f32"])
        | JUNK,
        "shape": st.lists(st.integers(-1, 5) | st.integers(2**31, 2**65), max_size=4) | JUNK,
        "data_offsets": st.lists(st.integers(0, 40) | st.integers(2**62, 2**65), max_size=3) | JUNK,
    },
    optional={"strides": JUNK, "dtype ": JUNK},
)
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "F8_E4M3": 1}


@st.composite
def laid_out(draw: st.DrawFn, names: list[str]) -> dict[str, Any]:
    """A header whose tensors lie end to end, but for a gap, an overlap or a lie in one of them."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.sampled_from(names) | WORDS, max_size=5)):
        dtype, shape = draw(st.sampled_from(list(SIZES))), draw(st.lists(st.integers(0, 3), max_size=3))
        size = SIZES[dtype]
        for each in shape:
            size *= each
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size + draw(st.sampled_from([0] * 12 + [1, -1, 4, 2**40]))
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.sampled_from([{"format": "pt"}, {}, {"format": 1}, None, []]))
    return header


@st.composite
def safetensors(draw: st.DrawFn, sound: bytes, names: list[str]) -> bytes:
    """A file called model.safetensors."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(damaged(sound))
    if kind == 1:
        return draw(st.binary(max_size=80))
    if kind == 2:
        header = draw(st.dictionaries(st.sampled_from(names) | WORDS, ENTRIES | JUNK, max_size=3))
    else:
        header = draw(laid_out(names))
    text = encode(Twice(header) if header and draw(st.integers(0, 7)) == 0 else header)
    if draw(st.integers(0, 9)) == 0:
        text = draw(damaged(text))
    text += b" " * draw(st.sampled_from([0, 0, 0, 7, 1000]))
    length = draw(st.sampled_from([len(text)] * 8 + [0, 1, len(text) + 1, len(text) - 1, 2**31, 2**63, 2**64 - 1]))
    ends = [each["data_offsets"][1] for each in header.values() if _has_offsets(each)]
    body = min(max([*ends, 0]), 4096) + draw(st.sampled_from([0] * 8 + [1, -1, 40]))
    return struct.pack("<Q", max(0, length)) + text + b"\0" * max(0, body)


def _has_offsets(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


def indexes(names: list[str], shards: list[str]) -> st.SearchStrategy[bytes]:
    """Contents of model.safetensors.index.json."""
    odd = ("../base/model.safetensors", "/etc/passwd", "x.bin", "absent.safetensors", ".safetensors", "a\0.safetensors")
    longest = st.sampled_from(
        ["a" * 300 + ".safetensors", "\ud800.safetensors", "a/../b.safetensors", "CON.safetensors"]
    )
    places = st.sampled_from([*shards, *odd]) | longest | JUNK
    weight_map = st.dictionaries(st.sampled_from(names) | WORDS, places, max_size=6)
    whole = st.builds(lambda weights: {"metadata": {}, "weight_map": weights}, weight_map | JUNK)
    return whole.map(encode) | whole.map(encode).flatmap(damaged) | JUNK.map(encode)


ALIASES = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (here, here, b",".join([b"*%c" % before] * 9))
    for before, here in zip(b"abcdefgh", b"bcdefghi", strict=True)
)
MERGES = b"a: &a {x: 1}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (here, here, b",".join([b"*%c" % before] * 9))
    for before, here in zip(b"abcdefgh", b"bcdefghi", strict=True)
)
YAML_VALUES = st.sampled_from(
    [
        *(
            b"0.2",
            b"*i",
            b"&x [*x]",
            b"[" * 100_000,
            b"[" * 300 + b"]" * 300,
            b"{a: " * 400,
            b"1" * 100_000,
            b"0x" + b"f" * 9000,
        ),
        *(
            b"!!int ''",
            b"!!float x",
            b"!!bool maybe",
            b"!!timestamp x",
            b"2024-99-99",
            b"!!binary ?",
            b"!!set {a, b}",
            b"!!omap [1]",
        ),
        *(
            b"!!python/object/apply:os.system ['touch canary']",
            b"!!python/name:os.system",
            b"!!python/tuple [1]",
            b"!x y",
        ),
        *(
            b"1:1:1:1:1:1",
            b"9" * 400 + b":59",
            b".nan",
            b"-.inf",
            b"1e999",
            b"~",
            b"''",
            b"{5-10: {mlp: 0.5}}",
            b"{0-99999: {mlp: .1}}",
        ),
        *(
            b"{? [a] : b}",
            b"{? {a: b} : c}",
            b"'\\ud800'",
            b'"\\ud800"',
            b"\xff",
            b"\0",
            b"- - - -",
            b"|\n" + b" x" * 50,
            b"yes",
            b"<<",
        ),
        *(
            b"{1: {mlp: 0x" + b"f" * 9000 + b"}}",
            b"{0x" + b"f" * 9000 + b": {mlp: .1}}",
            b"{1: {mlp: *i}}",
            b"!!null x",
            b"!!str [a]",
        ),
    ]
)
YAML_KEYS = st.sampled_from(
    [
        *(
            b"ratio",
            b"mlp-ratio",
            b"mlp_ratio",
            b"method",
            b"layers",
            b"model",
            b"max-shard-size",
            b"max_memory",
            b"seed",
            b"output",
        ),
        *(
            b"data",
            b"refine",
            b"dtype",
            b"<<",
            b"? [a, b]\n",
            b"1",
            b"null",
            b"2024-01-01",
            b"*i",
            b"&k key",
            b"'\\x1b[31m'",
            b'"\\e[31m"',
        ),
        *(b"!!int x", b"\xff", b"x" * 2000, b"overwrite", b"verify", b"eval", b"compute-dtype", b"device", b"effort"),
    ]
)


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    """Contents of a recipe."""
    head = draw(st.sampled_from([b"", b"", b"", b"", ALIASES, MERGES, b"--- \n", b"%YAML 9.9\n---\n"]))
    pairs = draw(st.lists(st.tuples(YAML_KEYS, YAML_VALUES | JUNK.map(encode)), max_size=4))
    text = head + b"".join(key + b": " + value + b"\n" for key, value in pairs)
    return draw(damaged(text)) if draw(st.integers(0, 7)) == 0 else text


@st.composite
def cards(draw: st.DrawFn) -> bytes:
    """Contents of README.md."""
    keys = st.sampled_from([b"license", b"language", b"license_name", b"license_link", b"tags", b"base_model", b"x"])
    pairs = draw(st.lists(st.tuples(keys | YAML_KEYS, YAML_VALUES | JUNK.map(encode)), max_size=4))
    head = draw(st.sampled_from([b"", b"", b"", ALIASES, MERGES]))
    text = b"---\n" + head + b"".join(key + b": " + value + b"\n" for key, value in pairs) + b"---\n# Card\n"
    text += draw(st.sampled_from([b"", b"", b"\n" * 100_000, b" " * 100_000, b"---\n" * 20_000]))
    return draw(damaged(text)) if draw(st.integers(0, 7)) == 0 else text


NAMES = (
    *(
        b"config.json",
        b"model.safetensors",
        b"model.safetensors.index.json",
        b"tokenizer.json",
        b"tokenizer_config.json",
    ),
    *(b"generation_config.json", b"README.md", b"LICENSE", b"merges.txt", b"vocab.json", b"special_tokens_map.json"),
    *(
        b"chat_template.jinja",
        b"additional_chat_templates",
        b"additional_chat_templates/x.jinja",
        b"adapter_config.json",
    ),
    *(b"pytorch_model.bin", b"model-00001-of-00002.safetensors", b"added_tokens.json", b"processor_config.json"),
    *(
        b"\xff.txt",
        b"license\xff",
        b"a\nb.txt",
        b"[/x].txt",
        b"\x1b[31mred.txt",
        b"-rf",
        b"$(touch canary)",
        b"..x",
        b"n" * 250,
    ),
    *(
        b"tokenizer.model",
        b"evil.py",
        b"modeling_llmfold.py",
        b"\xe2\x80\xaetxt.exe",
        b"license [bold]x[/bold",
        b"notice\n",
    ),
)
KINDS = (
    *(
        "to the secret",
        "to /etc/passwd",
        "to /dev/zero",
        "to itself",
        "to the parent",
        "to a file inside",
        "to nowhere",
    ),
    *("pipe", "device", "socket", "folder", "huge", "empty", "pickle", "zip", "text", "hard link", "a loop of two"),
)


def folders() -> st.SearchStrategy[list[tuple[bytes, str]]]:
    """What takes the place of files of a model folder, or lies beside them."""
    return st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS)), min_size=1, max_size=4)


def packed(pack: Callable[[bytes], bytes], content: bytes) -> bytes:
    """Packed bytes, the packer not asked twice for its best."""
    return pack(content)


BOMB = b"a b " * 16_000_000
"""64 MB, of which a packed file needs little."""


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and contents of a text."""
    suffix = draw(st.sampled_from([".txt", ".txt.gz", ".txt.xz", "", ".GZ", ".xz"]))
    content = draw(
        st.sampled_from([b"prose\n", b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}", b"[{}]", b"[" * 100_000, b"\0" * 9])
        | st.binary(max_size=60)
        | JUNK.map(encode)
    )
    packers = {
        "z": lambda: gzip.compress(content, 1),
        "x": lambda: lzma.compress(content, preset=0),
        "": lambda: content,
    }
    data = packers[draw(st.sampled_from(["z", "x", "", suffix[-1:].lower() if suffix[-1:] in ("z", "Z") else ""]))]()
    return suffix, draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and contents of a table of texts."""
    suffix = draw(st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".ndjson", ".jsonl.gz", ".json.xz"]))
    rows = draw(st.lists(st.dictionaries(st.sampled_from(["text", "x", ""]), JUNK, max_size=2), max_size=3))
    data = b"\n".join(encode(row) for row in rows)
    data = (
        gzip.compress(data, 1)
        if suffix.endswith("gz")
        else lzma.compress(data, preset=0)
        if suffix.endswith("xz")
        else data
    )
    return suffix, draw(damaged(data)) if draw(st.booleans()) else data
