"""A bench report as aligned text for a terminal: a line for each figure, a column for each target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune.bench.noise import NO_GPU, absent, is_absent
from edgetune.bench.task import TASKS
from edgetune.report.columns import Column, column
from edgetune.report.figures import figures_of, place
from edgetune.text_table import aligned

ABSENT = "-"
Cell = tuple[str, str]
"""What is shown, and why nothing is, or ""."""


def plain(report: Mapping[str, Any]) -> str:
    """The table, then what training cost, what was left out, and why something is absent, if anything is."""
    targets: Sequence[Mapping[str, Any]] = report["targets"]
    lines = [["", *(target["name"] for target in targets)]]
    reasons: dict[str, list[str]] = {}
    for label, cells in figure_lines(targets, report["reference"]):
        lines.append([label, *(text for text, _ in cells)])
        for _, reason in cells:
            if reason:
                reasons.setdefault(reason, []).append(label)
    notes = [*training_lines(report), *(f"left out: {item['target']}: {item['reason']}" for item in report["left_out"])]
    notes += [f"{ABSENT} {', '.join(dict.fromkeys(labels))}: {reason}" for reason, labels in reasons.items()]
    return "\n".join([aligned(lines), *([""] if notes else []), *notes])


def figure_lines(targets: Sequence[Mapping[str, Any]], reference: str | None) -> Iterator[tuple[str, list[Cell]]]:
    """(what a figure is called, a cell for each target). What no target has by its nature has no line."""
    found = [figures_of(target) for target in targets]
    keys = sorted({key for figures in found for key in figures}, key=lambda key: (place(key), key))
    by_nature = {NO_GPU, *(task.LACKS["absent"] for task in TASKS.values())}
    for key in keys:
        values = [_value(figures, key) for figures in found]
        is_there = any(not is_absent(value) for value in values)
        is_told_below = any(other.startswith(f"{key}.") for other in keys)
        if is_there or not (is_told_below or all(value["absent"] in by_nature for value in values)):
            shown = column(key)
            title = shown.title.replace("the reference", reference or "the reference")
            yield title, [cell(shown, value) for value in values]


def cell(shown: Column, value: Mapping[str, Any]) -> Cell:
    """A figure with its noise: half the spread between processes, or its interval."""
    if is_absent(value):
        return ABSENT, value["absent"]
    if "median" in value:
        spread = "" if value.get("spread") is None else f" ±{value['spread'] / 2:.1%}"
        return f"{shown.form(value['median'])}{spread}", ""
    bounds = value.get("interval")
    interval = f" ({shown.form(bounds[0])} to {shown.form(bounds[1])})" if bounds else ""
    return f"{shown.form(value['value'])}{interval}", ""


def training_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What the training of each run cost, below the table."""
    for item in report["training"]:
        cells = {key: cell(column(key), item[key]) for key in ("peak_bytes", "tokens_per_s", "wall_s")}
        reason = next((reason for _, reason in cells.values() if reason), "")
        words = [f"{column(key).title} {text}" for key, (text, _) in cells.items()]
        yield f"training of {item['run']}: {reason or ', '.join(words)}"


def _value(figures: Mapping[str, Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    """A target's figure, or why it is absent, which may be said of several together."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        value = figures.get(".".join(parts[:end]))
        if value is not None and (end == len(parts) or is_absent(value)):
            return value
    return absent("")
