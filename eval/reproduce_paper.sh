#!/usr/bin/env bash
# The table of the model folding paper (arXiv 2502.10216): LLaMA-7B with 20 % removed, WikiText-2 and four zero-shot
# tasks, by seven of the methods here (METHODS names others). Needs the weights, the data sets, and a GPU or much patience.
#
#   eval/reproduce_paper.sh [MODEL] [RATIO] [OUTPUT]        default: huggyllama/llama-7b 0.2 reproduce-RATIO
#
# Without the hub: LLMFOLD_TEXT=wikitext-2-raw-v1-test.txt LLMFOLD_TASKS=DIR-OF-JSONL LLMFOLD_CALIBRATION=train.txt
# METHODS="self weights paper" and EVAL_OPTIONS="--limit 50 --windows 20" make it shorter. What is finished is kept.
set -euo pipefail

MODEL=${1:-huggyllama/llama-7b}
RATIO=${2:-0.2}
OUTPUT=${3:-reproduce-$RATIO}
METHODS=${METHODS:-self weights paper magnitude llm-pruner flap wanda-sp}
CALIBRATION=${LLMFOLD_CALIBRATION:-allenai/c4:en}
read -r -a EVAL_OPTIONS <<< "${EVAL_OPTIONS:-}"
TASKS=(--tasks wikitext2,folding)
if [ -n "${LLMFOLD_TEXT:-}" ]; then TASKS+=(--text "$LLMFOLD_TEXT"); fi
if [ -n "${LLMFOLD_TASKS:-}" ]; then TASKS+=(--data-dir "$LLMFOLD_TASKS"); fi

mkdir -p "$OUTPUT"
earlier=
for method in $METHODS; do
    data=()
    case $method in llm-pruner | flap | flap-uniform | wanda-sp | calibrated) data=(--data "$CALIBRATION") ;; esac
    if [ ! -d "$OUTPUT/$method" ]; then
        llmfold --model "$MODEL" --ratio "$RATIO" --ratio-of decoder --method "$method" "${data[@]}" \
            --fidelity-tokens 0 --output "$OUTPUT/$method"
    fi
    # What was measured of the dense model stands in every file, so each goes on from the one before.
    if [ -n "$earlier" ] && [ ! -f "$OUTPUT/$method.json" ]; then cp "$earlier" "$OUTPUT/$method.json"; fi
    earlier=$OUTPUT/$method.json
    llmfold eval --model "$OUTPUT/$method" --against "$MODEL" "${TASKS[@]}" "${EVAL_OPTIONS[@]}" \
        --trust-remote-code --output "$OUTPUT/$method.json"
done
python - "$OUTPUT" $METHODS << 'TABLE'
"""One table of all methods, the dense model first."""
import json
import sys
from pathlib import Path

from llmfold.evaluation.scores import Evaluation
from llmfold.report.markdown import table
from llmfold.report.scoreboard import notes, quality_rows

folder, methods = Path(sys.argv[1]), sys.argv[2:]
found = [Evaluation.from_dict(json.loads((folder / f"{m}.json").read_text())) for m in methods]
columns = [quality_rows(one) for one in found]
rows = [["method", *(row[0] for row in columns[0][1:])], ["dense", *(row[1] for row in columns[0][1:])]]
rows += [[method, *(row[2] for row in column[1:])] for method, column in zip(methods, columns)]
text = table(rows) + "\n\n" + "".join(f"- {note}\n" for note in notes(found[0]))
(folder / "table.md").write_text(text)
print(text)
TABLE
