"""What takes the place of files of a model folder, or lies beside them."""

from hypothesis import strategies as st

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
