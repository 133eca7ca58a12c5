"""What a report is made of: facts of runs and measurements, each there or not there. Nothing here reads or draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from edgetune.errors import EdgeTuneError

_Found = TypeVar("_Found")
STAGES = ("base", "tuned", "merged", "onnx-fp32", "onnx-exact", "bundle")
"""Names in results/ of what a run measures, in the order of the way to the device."""


@dataclass(frozen=True)
class Number:
    """A measured value, with its interval or its range where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Model:
    """One measured model: a point of the frontier, a line of the table."""

    source: str
    """The run or file it comes from."""
    stage: str
    """One of STAGES, or the kind of a target of `edgetune bench`."""
    name: str
    values: Mapping[str, Number]
    """By column, see columns.py. What is not known is not there."""
    rows: int | None = None
    """How many rows it was scored on."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Column -> why the measurement has no such number."""


@dataclass(frozen=True)
class Training:
    """What a training cost."""

    source: str
    """The run or file that tells it."""
    name: str
    """The run that was trained."""
    values: Mapping[str, Number]
    """By column, those of columns.TRAINING. What is not known is not there."""
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """Losses over optimizer steps."""

    training: tuple[tuple[int, float], ...]
    evaluation: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Step:
    """A stage of the ledger; numbers by the names of evaluate.ledger.Entry."""

    stage: str
    name: str
    values: Mapping[str, Number]


@dataclass(frozen=True)
class Confusion:
    """Which label was taken for which: rows the truth, columns the answers."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class LabelScore:
    """How well one label is found. Shares in 0..1."""

    label: str
    precision: Number
    recall: Number
    f1: Number
    support: int


@dataclass(frozen=True)
class Planned:
    """What the planner expected of training, and what was measured. Bytes."""

    parts: Mapping[str, int]
    expected_bytes: int
    measured_bytes: int | None


@dataclass(frozen=True)
class Candidate:
    """A point of `edgetune export-best`."""

    name: str
    size_bytes: int
    loss: float
    on_front: bool
    is_chosen: bool
    score: float | None
    tokens_per_s: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Search:
    """What a search tried, and why it chose what it chose."""

    candidates: tuple[Candidate, ...]
    reason: str


@dataclass(frozen=True)
class Picture:
    """A picture of a study."""

    title: str
    said: str
    """What it shows, in words."""
    source: str
    """As a data: URL."""


@dataclass(frozen=True)
class Study:
    """What `edgetune tune` found."""

    name: str
    path: str
    objectives: tuple[str, ...]
    trials: int
    given_up: int
    best: Mapping[str, str]
    """Key -> value of the best trial, objectives first."""
    front: tuple[Mapping[str, str], ...]
    """Of several objectives: trial, objectives and values of each trial of the Pareto front."""
    pictures: tuple[Picture, ...]
    provenance: Mapping[str, Any]
    what_mattered: str = ""
    """What stands behind the importances, or why there are none."""

    @property
    def data(self) -> str | None:
        """Studies are scored on eval rows, which tune.json does not name."""
        return None


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer."""

    text: str
    kind: Literal["same", "added", "missing"]
    """Than what it is held against; "missing" stands there and not in the answer."""


@dataclass(frozen=True)
class Shown:
    """One model's answer to a sample row."""

    stage: str
    pieces: tuple[Piece, ...]
    is_right: bool | None
    is_as_tuned: bool | None
    """Letter by letter the fine-tune's answer; None of the fine-tune and base themselves."""


@dataclass(frozen=True)
class Sample:
    """A row and what each model answered."""

    question: str
    wanted: str | None
    answers: tuple[Shown, ...]
    place: str


@dataclass(frozen=True)
class Run:
    """All that is known of a run folder."""

    name: str
    path: str
    task: str
    metric: str | None
    base: str | None = None
    models: tuple[Model, ...] = ()
    curve: Curve | None = None
    ledger: tuple[Step, ...] = ()
    verdict: str | None = None
    passed: bool | None = None
    """Whether the bundle kept enough of the gain, or was accepted."""
    gain_kept: Number | None = None
    confusion: Confusion | None = None
    labels: tuple[LabelScore, ...] = ()
    planned: Planned | None = None
    training: Training | None = None
    stage_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds each stage took."""
    search: Search | None = None
    samples: tuple[Sample, ...] = ()
    data: str | None = None
    """Where the rows come from that it was scored on."""
    recipe: str | None = None
    """TOML."""
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A file of `edgetune bench` or `edgetune evaluate`."""

    name: str
    path: str
    models: tuple[Model, ...]
    data: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    """Whose stages are the targets' names."""
    trainings: tuple[Training, ...] = ()


@dataclass(frozen=True)
class Report:
    """Runs, measurements and studies, and what of the input was left out."""

    title: str
    runs: tuple[Run, ...]
    measurements: tuple[Measurement, ...]
    problems: tuple[str, ...]
    """One line for each thing that is missing, broken or of another version."""
    provenance: Mapping[str, Any]
    studies: tuple[Study, ...] = ()

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model measured."""
        return (
            *(m for run in self.runs for m in run.models),
            *(m for found in self.measurements for m in found.models),
        )


@dataclass
class Problems:
    """What was left out so far."""

    lines: list[str] = field(default_factory=list)

    def attempt(self, what: str, work: Callable[[], _Found]) -> _Found | None:
        """What `work` gives; None, and a line, where the input is missing or not as it should be."""
        try:
            return work()
        except EdgeTuneError as error:
            self.lines.append(error.message)
        except KeyError as error:
            self.lines.append(f"{what}: has no {error}")
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            self.lines.append(f"{what}: damaged, or of another version: {error}")
        return None


def number(value: Any) -> float | None:
    """A finite number, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def needed_number(value: Any) -> float:
    """The same. Raises ValueError for anything else."""
    found = number(value)
    if found is None:
        raise ValueError(f"{value!r:.40} is no number")
    return found


def with_interval(value: Any, interval: Any) -> Number | None:
    """A number with its interval [low, high], if that is one."""
    found = number(value)
    if found is None:
        return None
    bounds = [number(bound) for bound in interval] if isinstance(interval, list | tuple) and len(interval) == 2 else []
    if len(bounds) == 2 and None not in bounds:
        return Number(found, bounds[0], bounds[1])
    return Number(found)
