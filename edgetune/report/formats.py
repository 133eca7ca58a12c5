"""A report in other forms than a page: Markdown, CSV, JSON. Pure functions."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgetune.report.columns import Column, column, columns, is_first
from edgetune.report.facts import Model, Number, Report, Run, Study, Training
from edgetune.report.page import ledger_columns, rows_said, training_columns, trainings

FORMAT, VERSION = "edgetune-report", 1
ABSENT = "-"


def as_json(report: Report) -> str:
    """What the report holds, pictures aside, as one JSON object; what is not known is null or not there."""
    values = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(report)}
    for study in values["studies"]:
        del study["pictures"]
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(report: Report) -> str:
    """One line a model, one a training, two columns more for each interval; numbers as they were stored."""
    measured: list[Model | Training] = [*report.models, *trainings(report)]
    keys = [item.key for item in columns(measured)]
    bounded = {key for item in measured for key, number in item.values.items() if number.low is not None}
    names = [name for key in keys for name in ([key, f"{key}.low", f"{key}.high"] if key in bounded else [key])]
    out = io.StringIO()
    writer = csv.DictWriter(out, ["source", "model", "stage", "rows", *names], restval="", lineterminator="\n")
    writer.writeheader()
    for item in measured:
        line: dict[str, Any] = {"source": item.source, "model": item.name}
        line |= {"stage": item.stage, "rows": item.rows} if isinstance(item, Model) else {"stage": "training"}
        for key, number in item.values.items():
            line[key] = number.value
            if number.low is not None:
                line |= {f"{key}.low": number.low, f"{key}.high": number.high}
        writer.writerow(line)
    return out.getvalue()


def as_markdown(report: Report) -> str:
    """Tables for a README or an issue: models, trainings, the ledger of each run, and what was left out."""
    shown = [item for item in columns(report.models) if is_first(item)]
    rows = [([model.name, model.source], model.values) for model in report.models]
    parts = [f"# {as_plain(report.title)}"]
    if report.models:
        parts += [*table(["model", "from"], rows, shown), "", rows_said(report)]
    if trained := trainings(report):
        costs = [([training.name, training.source], training.values) for training in trained]
        parts += ["", "## Training", *table(["run", "from"], costs, training_columns(report))]
    for run in report.runs:
        parts += ["", f"## {as_plain(run.name)}", *_run(run)]
    for study in report.studies:
        parts += ["", f"## {as_plain(study.name)}", *_study(study)]
    if report.problems:
        parts += ["", "## Left out", "", *(f"- {as_plain(line)}" for line in report.problems)]
    return "\n".join(parts) + "\n"


def _run(run: Run) -> Iterable[str]:
    if run.verdict:
        yield ""
        yield f"{as_plain(run.verdict)}."
    if run.ledger:
        found = ledger_columns(run)
        rows = [
            (
                [step.name],
                {item.key: step.values[key] for item in found if (key := item.key.split(".")[0]) in step.values},
            )
            for step in run.ledger
        ]
        yield from table(["step"], rows, found)
    if run.planned is not None:
        memory, measured = column("peak_bytes"), run.planned.measured_bytes
        yield ""
        yield (
            f"Training: {memory.form(run.planned.expected_bytes)} planned, "
            f"{'not measured' if measured is None else f'{memory.form(measured)} measured'}."
        )


def _study(study: Study) -> Iterable[str]:
    yield ""
    yield f"{study.trials} trials, {study.given_up} given up."
    if study.what_mattered:
        yield f"What mattered: {as_plain(study.what_mattered)}."
    for row in study.front or (study.best,):
        yield ""
        yield ", ".join(f"{as_plain(name)} {as_plain(value)}" for name, value in row.items())


def table(
    names: Sequence[str], rows: Sequence[tuple[Sequence[str], Mapping[str, Number]]], shown: Sequence[Column]
) -> list[str]:
    """A GitHub table: names at the left, then the columns."""
    lines = ["", _line([*names, *(item.title for item in shown)])]
    lines.append(_line([*("---" for _ in names), *("---:" for _ in shown)]))
    for heads, values in rows:
        lines.append(_line([*map(as_plain, heads), *(_cell(item, values.get(item.key)) for item in shown)]))
    return lines


def _cell(shown: Column, number: Number | None) -> str:
    if number is None:
        return ABSENT
    interval = shown.form_interval(number)
    return f"{shown.form(number.value)}{f' ({interval})' if interval else ''}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_plain(text: str) -> str:
    """Text that Markdown and its HTML show as it is, on one line."""
    line = " ".join(text.split())
    for sign in "\\`*_[]<>|#":
        line = line.replace(sign, f"\\{sign}" if sign != "<" else "&lt;")
    return line
