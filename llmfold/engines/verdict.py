"""What an engine does with a folder."""

from dataclasses import dataclass, replace

from llmfold.engines.facts import Facts

BY_LAYER = "layers differ in width, which its own classes do not build"


@dataclass(frozen=True)
class Verdict:
    """What an engine does with a folder.

    Attributes:
        loads: whether it loads and runs the model.
        why: why not; or, of one that loads, what else is to be known. Without a full stop.
        flag: what must be passed for it to load, None where nothing.
        agrees: whether it computes what the newest transformers does, where it loads.
        tokenizer: whether it reads the folder's tokenizer.
        tokenizer_why: why not.
    """

    loads: bool
    why: str = ""
    flag: str | None = None
    agrees: bool = True
    tokenizer: bool = True
    tokenizer_why: str = ""

    def but(self, **changes: object) -> "Verdict":
        """The same with other values."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def words(self) -> str:
        """The verdict in short, as tables have it."""
        if not self.loads:
            return "does not load"
        if not self.agrees:
            return "loads, and computes something else"
        return f"loads with {self.flag}" if self.flag else "loads"

    @property
    def reason(self) -> str:
        """All that is to be said of it."""
        return "; ".join(filter(None, (self.why, "" if self.tokenizer else f"tokenizer: {self.tokenizer_why}")))


def refused(why: str) -> Verdict:
    """An engine that does not load a folder."""
    return Verdict(False, why)


def refused_heads(facts: Facts, by: str) -> Verdict | None:
    """An engine that divides to know how wide heads are, where these are not so wide; None where they are.

    Args:
        facts: of the folder.
        by: what of the engine divides, in words.
    """
    if facts.heads_fill_hidden:
        return None
    return refused(f"{by} takes heads for hidden_size / num_attention_heads wide, which these are not")


def with_tokenizer(verdict: Verdict, facts: Facts, why: str = "") -> Verdict:
    """A verdict with what an engine makes of the tokenizer: it reads one that is there, unless ``why`` says why not."""
    why = why if facts.has_tokenizer else "there is none in the folder"
    return verdict.but(tokenizer=not why, tokenizer_why=why)
