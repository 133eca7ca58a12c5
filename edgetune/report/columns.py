"""Columns: figures as pages, tables and pictures show them, and which of them come first. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgetune.report.facts import Model, Number, Training
from edgetune.report.figures import Better, Kind, Unit, find

MIB = 1024**2
FIRST: tuple[Kind, ...] = ("score", "loss", "size", "memory", "speed")
"""Kinds of figures in the first table, in their order; the others follow below it."""
TRAINING = ("peak_bytes", "tokens_per_s", "step_tokens_per_s", "wall_s", "steps", "tokens")
"""What is told of a training, in this order."""
AXES: tuple[tuple[Kind, Kind], ...] = (("memory", "score"), ("memory", "loss"), ("size", "score"), ("size", "loss"))
"""What a frontier is drawn over: the first pair that a model has both of."""


@dataclass(frozen=True)
class Column:
    """A quantity that models are measured in."""

    key: str
    title: str
    unit: Unit
    better: Better
    kind: Kind = "detail"

    @property
    def factor(self) -> float:
        """From the stored value to the one on an axis."""
        return {"share": 100.0, "bytes": 1 / MIB, "seconds": 1e3}.get(self.unit, 1.0)

    @property
    def axis(self) -> str:
        """Title of an axis, with the unit."""
        units = {"share": "%", "bytes": "MiB", "seconds": "ms", "nats": "nats", "joules": "J"}
        return f"{self.title} ({units[self.unit]})" if self.unit in units else self.title

    def form(self, value: float) -> str:
        """A value for people."""
        scaled = value * self.factor
        if self.unit == "share":
            return f"{scaled:.1f}%"
        if self.unit == "bytes":
            return f"{scaled:,.0f} MiB" if scaled >= 100 else f"{scaled:.1f} MiB"
        if self.unit == "seconds":
            long = f"{value / 60:,.1f} min" if value >= 120 else f"{value:,.2f} s"
            return long if value >= 1 else f"{scaled:,.1f} ms"
        if self.unit == "nats":
            return f"{value:.4f}".replace("-0.0000", "0.0000")
        if self.unit == "joules":
            return f"{value:.3g} J"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    def form_interval(self, number: Number) -> str:
        """An interval for people, "" where there is none."""
        if number.low is None or number.high is None:
            return ""
        return f"{self.form(number.low)} to {self.form(number.high)}"


def column(key: str) -> Column:
    """The column of a figure; one that the table of figures does not know has its path for a name."""
    known = find(key)
    if known is None:
        return Column(key, key.replace("_", " "), _unit(key), None)
    figure, title = known
    return Column(key, title, figure.unit, figure.better, figure.kind)


def columns(measured: Iterable[Model | Training]) -> list[Column]:
    """The columns that any of the models has, the first ones first."""
    found = [column(key) for key in dict.fromkeys(key for item in measured for key in item.values)]
    return sorted(found, key=lambda item: FIRST.index(item.kind) if item.kind in FIRST else len(FIRST))


def is_first(item: Column) -> bool:
    """Whether a column stands in the first table."""
    return item.kind in FIRST


def default_axes(models: Iterable[Model]) -> tuple[str, str] | None:
    """(x, y): memory, or size where no memory is known, and score, or loss; of several those that show the most models.

    None where no model has both.
    """
    found = list(models)
    kinds = {key: column(key).kind for model in found for key in model.values}

    def count(x: str, y: str) -> int:
        return sum(x in model.values and y in model.values for model in found)

    for x_kind, y_kind in AXES:
        xs, ys = ([key for key, kind in kinds.items() if kind == wanted] for wanted in (x_kind, y_kind))
        best = max(((x, y) for x in xs for y in ys), key=lambda pair: count(*pair), default=None)
        if best and count(*best):
            return best
    return None


def _unit(name: str) -> Unit:
    """Units stand at the end of a name."""
    endings: dict[str, Unit] = {"_bytes": "bytes", "_per_s": "rate", "_s": "seconds"}
    return next((unit for ending, unit in endings.items() if name.endswith(ending)), "plain")
