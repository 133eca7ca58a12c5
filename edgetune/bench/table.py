"""A bench report as aligned text for a terminal: a line for each quantity, a column for each target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.bench.cells import ABSENT, Cell, mib, noisy, one, rate, share, time_of, value_of
from edgetune.bench.task import TASKS
from edgetune.report.table import SCORE_NAMES
from edgetune.text_table import aligned


def plain(report: Mapping[str, Any]) -> str:
    """The table, then what training cost, and why something is absent, if anything is."""
    targets: Sequence[Mapping[str, Any]] = report["targets"]
    lines = [["", *(target["name"] for target in targets)]]
    reasons: dict[str, list[str]] = {}
    for label, cells in _lines(report):
        lines.append([label, *(text for text, _ in cells)])
        for _, reason in cells:
            if reason:
                reasons.setdefault(reason, []).append(label)
    notes = [f"{ABSENT} {', '.join(dict.fromkeys(labels))}: {reason}" for reason, labels in reasons.items()]
    trained = list(training_lines(report))
    return "\n".join([aligned(lines), *([""] if notes or trained else []), *trained, *notes])


def _lines(report: Mapping[str, Any]) -> Iterator[tuple[str, list[Cell]]]:
    """Every line of the table: its label, its cells. What no target has by its nature has no line."""
    targets, data = report["targets"], report["data"]
    tasks = [task for name, task in TASKS.items() if any(target["task"] == name for target in targets)]
    name = SCORE_NAMES.get(data["metric"], data["metric"]) if data else "score"
    if report.get("task"):
        name = f"lm-eval {report['task']['name']}"
    yield name, [value_of(target["score"], share) for target in targets]
    yield "loss", [value_of(target["loss"], "{:.4f}".format) for target in targets]
    for task in tasks:
        yield from task.worth_lines(targets, report["reference"])
    yield "on disk", [(mib(target["disk_bytes"]), "") for target in targets]
    yield "load time", [noisy(target["load_s"], time_of) for target in targets]
    for task in tasks:
        yield from task.cost_lines(targets, report["settings"])


def training_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What the training of each run cost, below the table."""
    for item in report["training"]:
        cells = [
            one(item["peak_bytes"], "value", mib),
            one(item["tokens_per_s"], "value", rate),
            one(item["wall_s"], "value", lambda seconds: f"{seconds / 60:.1f} minutes"),
        ]
        words = [f"{cells[0][0]} at the peak", f"{cells[1][0]} tokens/s", cells[2][0]]
        reason = next((reason for _, reason in cells if reason), "")
        yield f"training of {item['run']}: {reason or ', '.join(words)}"
