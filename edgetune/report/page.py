"""A report as one HTML page that needs nothing beside it: template, styles and scripts from page/, all inlined."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgetune.report.charts import charts
from edgetune.report.columns import TRAINING, Column, column, columns, is_first
from edgetune.report.facts import Measurement, Model, Number, Report, Run, Study, Training
from edgetune.report.measured import titled
from edgetune.report.run_folder import STEP_NUMBERS
from edgetune.report.task import TASKS, task_named

PAGE = Path(__file__).parent / "page"
VEGA_VERSION = "6.2"
MOST_CELLS = 24
"""Labels up to which a confusion matrix is a table; with more it is a picture."""
MOST_PAIRS = 30
CLOSENESS = ("kl", "changed_rows")
"""How far a bundle is from its fine-tune."""
SHOWN_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "onnxruntime", "onnxruntime-genai")


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page."""

    name: str
    value: str
    of: str = ""


def render(report: Report) -> str:
    """The page. Raises ModuleNotFoundError without jinja2, which cli.extras turns into what to install."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn, found = charts(report), columns(report.models)
    many = len({model.source for model in report.models}) > 1
    template = environment.get_template("page.html.j2")
    return template.render(
        report=report,
        charts=drawn,
        css=Markup(_text("page.css")),
        page_js=Markup(_text("page.js")),
        vega=Markup(_text("vega.js")),
        vega_version=VEGA_VERSION,
        lead=lead(report),
        tiles=tiles(report),
        across=in_a_row(len(tiles(report))),
        sections=sections(report, drawn),
        many=many,
        first_columns=[item for item in found if is_first(item)],
        other_columns=[item for item in found if not is_first(item)],
        run_columns=[
            item
            for item in found
            if (is_first(item) or item.key in CLOSENESS) and any(item.key in bundle_values(run) for run in report.runs)
        ],
        models_caption=rows_said(report),
        absent=absent(report.models),
        trainings=trainings(report),
        training_columns=training_columns(report),
        training_absent=absent(trainings(report)),
        trained_elsewhere=any(training.source != training.name for training in trainings(report)),
        loss_unit=loss_unit,
        most_cells=MOST_CELLS,
        column=column,
        share=column("score"),
        as_number=lambda value: None if value is None else Number(float(value)),
        bundle_values=bundle_values,
        ledger_columns=ledger_columns,
        ledger_key=lambda key: key.split(".")[0],
        stage_title=lambda stage, run: titled(stage, precision(run)),
        confused=confused,
        provenance_lines=provenance_lines,
        written=time.strftime("%Y-%m-%d"),
    )


@cache
def _text(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def lead(report: Report) -> str:
    """What this page is of, in a sentence."""
    runs, models = len(report.runs), len(report.models)
    if runs == 1 and not report.measurements:
        run = report.runs[0]
        base, end = (
            f" of {run.base}" if run.base else "",
            f" to {precision(run)} on the device" if precision(run) else "",
        )
        return f"{task_named(run.task).result}{base}, carried{end}: {models} models measured on the same rows."
    parts = [f"{runs} fine-tune{'s' if runs > 1 else ''} carried to the device"] if runs else []
    if count := len(report.measurements):
        parts.append(f"{count} measurement{'s' if count > 1 else ''}")
    if not parts:
        return f"Hyperparameters searched: {sum(study.trials for study in report.studies)} trials."
    return f"{' and '.join(parts)}: {models} models."


def tiles(report: Report) -> list[Tile]:
    """The numbers that say what it is worth: of one run those of its bundle, of several how many hold."""
    if len(report.runs) == 1:
        return _run_tiles(report.runs[0])
    if not report.runs:
        return []
    judged = [run for run in report.runs if run.passed is not None]
    found = [Tile("bundles verified", f"{sum(run.passed is True for run in judged)} of {len(report.runs)}")]
    for key in ("disk_bytes", "peak_bytes"):
        sizes = [bundle_values(run)[key].value for run in report.runs if key in bundle_values(run)]
        if sizes:
            found.append(Tile(f"smallest bundle, {column(key).title}", column(key).form(min(sizes))))
    return found


def in_a_row(count: int, *, most: int = 6) -> int:
    """How many of so many tiles stand in a row, at most `most`, for rows about as long as each other."""
    rows = -(-count // most) or 1
    return -(-count // rows) or 1


def _run_tiles(run: Run) -> list[Tile]:
    values, bundle, found = bundle_values(run), titled("bundle", precision(run)), []
    for item in columns(run.models):
        if item.key in values and is_first(item) and item.key != "loss":
            found.append(Tile(item.title, item.form(values[item.key].value), bundle))
    if run.gain_kept is not None:
        found.append(
            Tile("of the gain kept", column("gain_kept").form(run.gain_kept.value), "bundle against fine-tune")
        )
    for item in map(column, CLOSENESS):
        if item.key in values:
            found.append(Tile(item.title, item.form(values[item.key].value), bundle))
    return found


def sections(report: Report, drawn: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, name) of the sections that the page has."""
    named = {
        "frontier": ("Accuracy against memory", "frontier" in drawn),
        "runs": ("Runs", len(report.runs) > 1),
        "models": ("Measured", bool(report.models)),
        "training": ("Training", "losses" in drawn or "planner" in drawn or bool(trainings(report))),
        "details": ("Run by run" if len(report.runs) > 1 else "The run", bool(report.runs)),
        "studies": ("Searches" if len(report.studies) > 1 else "The search", bool(report.studies)),
        "files": ("Measurements", bool(report.measurements)),
    }
    return [(anchor, name) for anchor, (name, is_there) in named.items() if is_there]


def rows_said(report: Report) -> str:
    """On what the models were scored; that it is not the same for all, where it is not."""
    counts = sorted({model.rows for model in report.models if model.rows is not None})
    sources = {text for text in (*(r.data for r in report.runs), *(m.data for m in report.measurements)) if text}
    if len(counts) == 1 and len(sources) == 1:
        return f"{counts[0]:,} rows of {next(iter(sources))}; intervals below the numbers where they were measured."
    if len(counts) > 1 or len(sources) > 1:
        return "Not all were scored on the same rows: scores of different rows cannot be compared."
    return "Intervals below the numbers where they were measured."


def loss_unit(report: Report) -> str:
    """What the losses of its runs are means over, one of them."""
    found = [task_named(run.task) for run in report.runs]
    first, *others = [task for task in TASKS.values() if task in found]
    return "".join([first.unit, *(f", of {task.kind}s per {task.unit}" for task in others)])


def trainings(report: Report) -> list[Training]:
    """What each training cost, of runs and of measurements."""
    own = [run.training for run in report.runs if run.training is not None]
    return [*own, *(training for found in report.measurements for training in found.trainings)]


def training_columns(report: Report) -> list[Column]:
    """The columns that any training has."""
    return [column(key) for key in TRAINING if any(key in training.values for training in trainings(report))]


def absent(measured: Iterable[Model | Training]) -> list[str]:
    """One line for each reason why measurements have no number: the reason, of what, which numbers."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for item in measured:
        for key, reason in item.absent.items():
            lacking.setdefault((reason, column(key).title), []).append(item.name)
    titles: dict[tuple[str, str], list[str]] = {}
    for (reason, title), names in lacking.items():
        titles.setdefault((reason, ", ".join(dict.fromkeys(names))), []).append(title)
    return [f"{reason} ({names}): {', '.join(found)}" for (reason, names), found in titles.items()]


def bundle_values(run: Run) -> Mapping[str, Number]:
    """The numbers of a run's bundle; {} where it was not measured."""
    return next((model.values for model in run.models if model.stage == "bundle"), {})


def precision(run: Run) -> str:
    """int4 and the like, as far as the bundle's name says it."""
    return next((model.name.removesuffix(" bundle") for model in run.models if model.stage == "bundle"), "")


def ledger_columns(run: Run) -> list[Column]:
    """The columns of a run's ledger that any step has."""
    there = [key for key in STEP_NUMBERS if any(key in step.values for step in run.ledger)]
    return [column(f"score.{run.metric}" if key == "score" and run.metric else key) for key in there]


def confused(run: Run) -> list[tuple[str, str, int]]:
    """(truth, answer, rows) of the labels that are confused most."""
    if run.confusion is None:
        return []
    labels = run.confusion.labels
    pairs = [
        (labels[truth], labels[answer], count)
        for truth, row in enumerate(run.confusion.counts)
        for answer, count in enumerate(row)
        if count and truth != answer
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:MOST_PAIRS]


def provenance_lines(item: Run | Measurement | Study) -> list[tuple[str, str]]:
    """What a reader needs to repeat it."""
    record = item.provenance
    packages = record.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    command = record.get("command")
    lines = {
        "file" if isinstance(item, Measurement) else "folder": item.path,
        "scored on": item.data,
        "EdgeTune": _joined(record.get("edgetune"), record.get("commit")),
        "machine": _joined(
            record.get("processor"),
            _cores(record.get("cores")),
            _memory(record.get("memory_bytes")),
            *_gpus(record.get("gpus")),
            record.get("platform"),
        ),
        "packages": ", ".join(f"{name} {versions[name]}" for name in SHOWN_PACKAGES if name in versions),
        "seed": record.get("seed"),
        "command": " ".join(map(str, command)) if isinstance(command, list) else None,
    }
    return [(name, str(value)) for name, value in lines.items() if value not in (None, "")]


def _cores(count: Any) -> str | None:
    return f"{count} cores" if isinstance(count, int) else None


def _memory(size_bytes: Any) -> str | None:
    return f"{size_bytes / 1024**3:.0f} GiB of memory" if isinstance(size_bytes, int) else None


def _gpus(found: Any) -> list[str]:
    gpus = found if isinstance(found, list) else []
    return [str(gpu["name"]) for gpu in gpus if isinstance(gpu, Mapping) and gpu.get("name")]


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)
