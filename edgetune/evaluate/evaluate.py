"""The evaluate stage: a base, adapter, merged model or bundle -> results/<target>.json and its answers.

Each target is measured in a fresh process, so that its peak memory is its own and a bundle runs without torch.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetune.child_process import ask
from edgetune.evaluate.distance import Distance
from edgetune.evaluate.labeller import LabelScore, Latency
from edgetune.evaluate.metrics import FieldScore
from edgetune.evaluate.score import Score, Speed
from edgetune.files import atomic_file, write_json
from edgetune.provenance import provenance
from edgetune.recipe import ModelTable
from edgetune.report.measure import disk_bytes

Progress = Callable[[Mapping[str, Any]], None]
Kind = Literal["base", "tuned", "merged", "bundle", "gguf"]
CHILD = ["-m", "edgetune.evaluate.child"]
"""What Python runs to measure one target."""
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files of a Hugging Face folder that a model needs; cards and scripts beside them are not shipped."""


@dataclass(frozen=True)
class Target:
    """What is measured."""

    kind: Kind
    name: str
    """Names the files in results/."""
    path: Path
    """Base or merged: Hugging Face folder; tuned: adapter folder; bundle: bundle folder; gguf: the file."""
    model: ModelTable | None = None
    """How the torch targets are loaded: `base` is a local folder here; None for a bundle and a .gguf file."""
    task: Literal["generation", "classification"] = "generation"

    @property
    def shipped(self) -> tuple[Path, ...]:
        """Folders one would ship: base; base and adapter; merged folder; bundle; file."""
        return (Path(self.model.base), self.path) if self.kind == "tuned" and self.model else (self.path,)

    @property
    def shipped_suffixes(self) -> tuple[str, ...] | None:
        """Of the files in these folders that are shipped; None: all."""
        return None if self.kind in ("bundle", "gguf") else MODEL_SUFFIXES


@dataclass(frozen=True)
class Result:
    """One target's measurements."""

    target: Target
    score: Score | LabelScore
    speed: Speed | Latency | None
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
    which others are compared. `most_rows`: of a decoder as many, at even distances, are scored; None: all.

    Raises what the target's process raised (ModelError, BundleError, CheckError), OutOfMemoryError if it was killed.
    """
    started = time.perf_counter()
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
    measured = ask(CHILD, request, name=str(target.path), cure=cure, progress=_named(progress, target.name))
    answers = measured.pop("answers")
    result = Result(
        target=target,
        score=_score(measured["score"]),
        speed=_speed(measured["speed"]),
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
    target = dict(values["target"])
    model = ModelTable(**target["model"]) if target["model"] else None
    facts = {
        field.name: values[field.name]
        for field in dataclasses.fields(Result)
        if field.default is dataclasses.MISSING or field.name in values
    }
    facts |= {
        "target": Target(**{**target, "path": Path(target["path"]), "model": model}),
        "score": _score(values["score"]),
        "speed": _speed(values["speed"]),
        "distance": _distance(values.get("distance")),
    }
    return Result(**facts)


def _distance(values: Mapping[str, Any] | None) -> Distance | None:
    return Distance(**values) if values else None


def _speed(values: Mapping[str, Any] | None) -> Speed | Latency | None:
    if values is None:
        return None
    return Latency(**values) if "median_s" in values else Speed(**values)


def _score(values: Mapping[str, Any]) -> Score | LabelScore:
    interval = values["interval"]
    if "classes" in values:
        loss_interval = tuple(values["loss_interval"])
        return LabelScore(**{**values, "interval": tuple(interval), "loss_interval": loss_interval})
    return Score(
        **{
            **values,
            "interval": tuple(interval) if interval else None,
            "loss_interval": tuple(values["loss_interval"]),
            "fields": _fields(values["fields"]) if values["fields"] else None,
        }
    )


def _fields(values: Mapping[str, Any]) -> FieldScore:
    return FieldScore(**{**values, "f1_interval": tuple(values["f1_interval"])})


def _named(progress: Progress | None, name: str) -> Progress | None:
    """Progress that says which target it is about."""
    return progress and (lambda event: progress({**event, "stage": f"evaluate {name}"}))
