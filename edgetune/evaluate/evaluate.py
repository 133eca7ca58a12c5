"""The evaluate stage: a base, adapter, merged model or bundle -> results/<target>.json and its answers.

Each target is measured in a fresh process, so that its peak memory is its own and a bundle runs without torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetune import errors
from edgetune.evaluate.distance import Distance
from edgetune.evaluate.labeller import LabelScore, Latency
from edgetune.evaluate.metrics import FieldScore
from edgetune.evaluate.score import Score, Speed
from edgetune.files import atomic_file, write_json
from edgetune.provenance import provenance
from edgetune.recipe import ModelTable
from edgetune.report.measure import disk_bytes

Progress = Callable[[Mapping[str, Any]], None]
Kind = Literal["base", "tuned", "merged", "bundle"]
CHILD = ["-P", "-m", "edgetune.evaluate.child"]
"""What Python runs to measure one target; -P: no module of the current folder stands in for a library."""
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files of a Hugging Face folder that a model needs; cards and scripts beside them are not shipped."""


@dataclass(frozen=True)
class Target:
    """What is measured."""

    kind: Kind
    name: str
    """Names the files in results/."""
    path: Path
    """Base or merged: Hugging Face folder; tuned: adapter folder; bundle: bundle folder."""
    model: ModelTable | None = None
    """How the torch targets are loaded: `base` is a local folder here; None for a bundle."""
    task: Literal["generation", "classification"] = "generation"

    @property
    def shipped(self) -> tuple[Path, ...]:
        """Folders one would ship: base; base and adapter; merged folder; bundle."""
        return (Path(self.model.base), self.path) if self.kind == "tuned" and self.model else (self.path,)


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


def evaluate(
    target: Target,
    eval_set: Path,
    out: Path,
    *,
    distributions: Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Measure one target on an eval set file; writes out/<name>.json (with provenance) and out/<name>-answers.jsonl.

    `distributions`: a file to which the tuned target writes what it finds likely, and with which others are compared.

    Raises what the target's process raised (ModelError, BundleError, CheckError), OutOfMemoryError if it was killed.
    """
    started = time.perf_counter()
    measured = _measure_apart(target, eval_set, distributions, progress)
    answers = measured.pop("answers")
    result = Result(
        target=target,
        score=_score(measured["score"]),
        speed=_speed(measured["speed"]),
        disk_bytes=disk_bytes(*target.shipped, suffixes=None if target.kind == "bundle" else MODEL_SUFFIXES),
        peak_bytes=measured["peak_bytes"],
        device_peak_bytes=measured["device_peak_bytes"],
        scoring_peak_bytes=measured["scoring_peak_bytes"],
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
    facts = {field.name: values[field.name] for field in dataclasses.fields(Result) if field.name != "distance"}
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


def _measure_apart(
    target: Target, eval_set: Path, distributions: Path | None, progress: Progress | None
) -> dict[str, Any]:
    """What the child process measured. Its stderr is kept for the report of a bug."""
    request = {
        "kind": target.kind,
        "name": target.name,
        "path": str(target.path),
        "model": dataclasses.asdict(target.model) if target.model else None,
        "eval_set": str(eval_set),
        "task": target.task,
        "distributions": str(distributions.resolve()) if distributions else None,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, *CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(),
            text=True,
            encoding="utf-8",
        )
        try:
            outcome = _listen(child, request, target.name, progress)
        finally:
            if child.poll() is None:
                child.terminate()
            child.wait()
        if outcome is not None:
            return outcome
        log.seek(0)
        raise _death(target, child.returncode, log.read())


def _environment() -> dict[str, str]:
    """Ours, with this very edgetune first on the path."""
    package = str(Path(errors.__file__).parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1"}


def _listen(
    child: subprocess.Popen[str], request: Mapping[str, Any], name: str, progress: Progress | None
) -> dict[str, Any] | None:
    """Send the request, pass events on, wait for the end; the result, None if the process died without a word."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:  # it may be dead already: its exit code tells
        child.stdin.write(json.dumps(request))
    outcome = None
    with child.stdout:
        for line in child.stdout:
            said = json.loads(line)
            if "event" in said and progress:
                progress({**said["event"], "stage": f"evaluate {name}"})
            elif "error" in said:
                child.wait()
                raise getattr(errors, said["error"])(said["message"], cure=said["cure"])
            outcome = said.get("result", outcome)
    child.wait()
    return outcome


def _death(target: Target, code: int, log: str) -> Exception:
    if code == -9:
        return errors.OutOfMemoryError(
            f"{target.path}: its process was killed while it was measured, most likely for lack of memory",
            cure="close other programs, or lower evaluate.max_rows",
        )
    return RuntimeError(f"measuring {target.name} ended with code {code}\n{log[-4000:]}")
