"""Recipes and model cards."""

from hypothesis import strategies as st

from hostile_inputs.junk import JUNK, damaged, encode

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
