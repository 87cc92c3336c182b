"""Plan and report of an image model as tables for a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from llmfold.images.plan import ImagePlan
from llmfold.records.fold import PAGE_FILE, FoldRecord
from llmfold.report.console import rich_table
from llmfold.report.images import change_words, kept_words, loads_as, method_words, width_rows
from llmfold.report.terminal import facts, saving, stage_table
from llmfold.report.words import check_words
from llmfold.sizes import human_bytes, human_count


def image_plan_table(plan: ImagePlan) -> RenderableType:
    """The plan: sizes, keys of the config, how the result loads, what is kept and why, widths of couplings."""
    before, after, told = plan.module.before, plan.module.after, plan.to_dict()
    rows = [
        ("parameters", f"{human_count(before)} → {human_count(after)}  ({saving(before, after)})"),
        ("weights", f"{human_bytes(plan.bytes_before)} → {human_bytes(plan.bytes_after)}"),
        ("method", method_words(plan.config.method, told)),
        ("loads as", loads_as(told)),
        *((path, change_words(change)) for path, change in told["config"].items()),
        *(("kept", words) for words in kept_words(told["kept"])),
    ]
    return Group(facts(*rows), Text(), rich_table(width_rows(told), no_wrap=False))


def image_report_table(report: FoldRecord) -> RenderableType:
    """The report: sizes before and after, what was checked, and where the time went."""
    before, after, sizes = report.parameters_before, report.parameters_after, report.plan["bytes"]
    return facts(
        ("parameters", f"{before:,} → {after:,}  ({saving(before, after)})"),
        ("weights", f"{human_bytes(sizes['before'])} → {human_bytes(sizes['after'])}"),
        ("loads as", loads_as(report.plan)),
        ("reload check", check_words(report.verification)),
        *(("note", note) for note in report.notes),
        ("peak memory", human_bytes(report.peak_memory_bytes)),
        ("time", stage_table(report.seconds, None)),
        ("output", str(report.output)),
        ("report", str(report.output / PAGE_FILE)),
    )
