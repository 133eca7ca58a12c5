"""The evaluate stage: a base, adapter, merged model or bundle -> results/<target>.json and its answers.

Each target is measured in a fresh process, so that its peak memory is its own and a bundle runs without torch.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.child_process import ask
from edgetune.evaluate.distance import Distance
from edgetune.evaluate.target import Target as Target
from edgetune.evaluate.task import TASKS, Score, Speed
from edgetune.files import atomic_file, write_json
from edgetune.progress import Progress, as_stage
from edgetune.provenance import provenance
from edgetune.recipe import ModelTable
from edgetune.report.measure import disk_bytes

CHILD = ["-m", "edgetune.evaluate.child"]
"""What Python runs to measure one target."""


@dataclass(frozen=True)
class Result:
    """One target's measurements."""

    target: Target
    score: Score
    speed: Speed | None
    """None where no row could tell."""
    disk_bytes: int
    """Files one would ship, see Target.shipped."""
    peak_bytes: int
    """Highest resident memory of the target's own process: loading it and answering one prompt at a time."""
    device_peak_bytes: int | None
    """The same on the CUDA device, where one is used."""
    scoring_peak_bytes: int
    """Resident memory again, batched scoring included."""
    wall_s: float
    distance: Distance | None = None
    """From the fine-tune, where its distributions were at hand."""
    device_scoring_peak_bytes: int | None = None
    """As `device_peak_bytes`, batched scoring included."""


def evaluate(
    target: Target,
    eval_set: Path,
    out: Path,
    *,
    distributions: Path | None = None,
    is_reference: bool | None = None,
    most_rows: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure one target on an eval set file; writes out/<name>.json (with provenance) and out/<name>-answers.jsonl.

    `distributions`: a file to which the reference, by default a tuned target, writes what it finds likely, and with
    which others are compared. `most_rows`: where texts are generated as many, at even distances, are scored; None: all.

    Raises what the target's process raised (ModelError, BundleError, CheckError), OutOfMemoryError if it was killed.
    """
    started, task = time.perf_counter(), TASKS[target.task]
    request = {
        "kind": target.kind,
        "name": target.name,
        "path": str(target.path),
        "model": dataclasses.asdict(target.model) if target.model else None,
        "eval_set": str(eval_set),
        "task": target.task,
        "distributions": str(distributions.resolve()) if distributions else None,
        "most_rows": most_rows,
        "is_reference": target.kind == "tuned" if is_reference is None else is_reference,
    }
    cure = "close other programs, or lower evaluate.max_rows"
    told = as_stage(progress, f"evaluate {target.name}")
    measured = ask(CHILD, request, name=str(target.path), cure=cure, progress=told)
    answers = measured.pop("answers")
    result = Result(
        target=target,
        score=task.read_score(measured["score"]),
        speed=task.read_speed(measured["speed"]) if measured["speed"] else None,
        disk_bytes=disk_bytes(*target.shipped, suffixes=target.shipped_suffixes),
        peak_bytes=measured["peak_bytes"],
        device_peak_bytes=measured["device_peak_bytes"],
        scoring_peak_bytes=measured["scoring_peak_bytes"],
        device_scoring_peak_bytes=measured["device_scoring_peak_bytes"],
        wall_s=time.perf_counter() - started,
        distance=_distance(measured["distance"]),
    )
    with atomic_file(out / f"{target.name}-answers.jsonl") as path:
        path.write_text("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers), encoding="utf-8")
    facts = {"torch_loaded": measured["torch_loaded"], "provenance": provenance()}
    write_json(out / f"{target.name}.json", {**result_values(result), **facts})
    return result


def result_values(result: Result) -> dict[str, Any]:
    """A result as JSON-able values; `read_result` turns them back."""
    values = dataclasses.asdict(result)
    values["target"]["path"] = str(result.target.path)
    return values


def read_result(values: Mapping[str, Any]) -> Result:
    """The result in what `result_values` gave. Raises KeyError or TypeError for anything else."""
    named = dict(values["target"])
    model = ModelTable(**named["model"]) if named["model"] else None
    target = Target(**{**named, "path": Path(named["path"]), "model": model})
    task = TASKS[target.task]
    facts = {
        field.name: values[field.name]
        for field in dataclasses.fields(Result)
        if field.default is dataclasses.MISSING or field.name in values
    }
    facts |= {
        "target": target,
        "score": task.read_score(values["score"]),
        "speed": task.read_speed(values["speed"]) if values["speed"] else None,
        "distance": _distance(values.get("distance")),
    }
    return Result(**facts)


def _distance(values: Mapping[str, Any] | None) -> Distance | None:
    return Distance(**values) if values else None
