"""What engines do with a folder, in a line."""

from llmfold.engines import Verdict
from llmfold.report.engine_table import engine_line


def test_engines_stand_together_by_what_they_do() -> None:
    trust = Verdict(True, flag="trust_remote_code=True")
    line = engine_line(
        {
            "transformers": trust,
            "transformers-4.57": trust,
            "vllm": Verdict(False, "layers differ"),
            "onnx": Verdict(True, agrees=False),
            "llama.cpp": Verdict(True),
        }
    )
    assert line == (
        "loads with trust_remote_code=True: transformers 5, transformers 4.57; does not load: vLLM; "
        "loads, and computes something else: ONNX Runtime; loads: llama.cpp (llmfold doctor says why)"
    )
