"""One row of the matrix: a folder in an engine, what doctor said, what happened."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agreement import Agreement
from calling import LATE
from cases import Case
from environments import Engine

from llmfold.engines import Verdict


@dataclass(frozen=True)
class Row:
    """See the module; ``skipped`` where the engine is not here, whose reason is then the answer's ``error``."""

    case: Case
    engine: Engine
    verdict: Verdict | None
    answer: Mapping[str, Any]
    agreement: Agreement | None
    skipped: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.engine.title}: {self.case.name}"

    @property
    def loads(self) -> bool:
        """Whether the engine loaded and ran the folder."""
        return "error" not in self.answer

    @property
    def faults(self) -> list[str]:
        """Where the engine computes something else, or does not do what doctor says."""
        if self.skipped or self.verdict is None:
            return []
        found = list(self.agreement.faults) if self.agreement and self.verdict.agrees else []
        if self.answer.get("error", "").startswith(LATE):
            return [*found, self.answer["error"]]
        if self.loads != self.verdict.loads:
            said = "loads" if self.verdict.loads else f"does not load ({self.verdict.why})"
            found.append(f"doctor says that it {said}; {self.answer.get('error', 'it does')}")
        if self.loads and self.verdict.flag and "without_flag" in self.answer and not self.answer["without_flag"]:
            found.append(f"doctor says that it needs {self.verdict.flag}; it loads without")
        if self.agreement and not self.agreement.faults and not self.verdict.agrees:
            found.append("doctor says that it computes something else; it does not")
        reads = isinstance(self.answer.get("read"), list)
        if self.loads and reads != self.verdict.tokenizer:
            said = "reads" if self.verdict.tokenizer else "does not read"
            found.append(f"doctor says that it {said} the tokenizer; {self.answer['read'] if not reads else 'it does'}")
        return found

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        kept = {k: v for k, v in self.answer.items() if k not in ("top", "next", "greedy", "read", "name")}
        return {
            **{"engine": self.engine.key, "model": self.case.model.name, "variant": self.case.variant},
            **{"dtype": self.case.dtype, "doctor": asdict(self.verdict) if self.verdict else None, **kept},
            "agreement": asdict(self.agreement) if self.agreement else None,
            "faults": self.faults,
        }
