"""Several ratios in one command, each with an output of its own."""

from collections.abc import Sequence
from pathlib import Path

from llmfold.checkpoint import MARKER_FILE
from llmfold.checkpoint.locate import locate
from llmfold.config import FoldConfig
from llmfold.data.tokens import resolve_effort
from llmfold.jsonfile import read_object
from llmfold.pipeline.engine import fold_together
from llmfold.pipeline.opening import open_source
from llmfold.pipeline.progress import Listener
from llmfold.pipeline.provenance import origin, origin_digest
from llmfold.records.fold import REPORT_FILE, FoldRecord
from llmfold.records.saved import Save, load_record, save_record


def fold_sweep(
    configs: Sequence[FoldConfig], listener: Listener | None = None, save: Save = save_record
) -> list[FoldRecord]:
    """Fold by several configs that differ in ratio and output only; outputs that an interrupted sweep finished stay.

    Returns:
        One report per config, in their order.

    Raises:
        LlmfoldError: as :func:`llmfold.pipeline.engine.fold_together`.
    """
    finished = {c.output_path: report for c in configs if (report := finished_report(c)) is not None}
    missing = [c for c in configs if c.output_path not in finished]
    if configs[0].facts.one_pass:
        made = fold_together(missing, listener, save) if missing else []
        finished.update(zip((c.output_path for c in missing), made, strict=True))
    else:
        largest: Path | None = None
        for config in sorted(configs, key=lambda c: -float(c.ratio or 0)):
            if config.output_path not in finished:
                finished[config.output_path] = fold_together([config], listener, save, largest)[0]
            largest = largest or config.output_path
    return [finished[config.output_path] for config in configs]


def finished_report(config: FoldConfig) -> FoldRecord | None:
    """The report of an output that a run with these options, of this very source, has published; None without one."""
    folder = config.output_path
    if config.overwrite or not (folder / MARKER_FILE).is_file():
        return None
    source = locate(config.model, config.revision)
    checkpoint, shape = open_source(source)
    wanted = origin_digest(origin(resolve_effort(config, shape), source, checkpoint))
    if read_object(folder / MARKER_FILE, unique_keys=False).get("origin_sha256") != wanted:
        return None
    return load_record(folder) if (folder / REPORT_FILE).is_file() else None
