"""The frontier as a PNG: score against memory of every measured model, for a README or a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.errors import RunError
from edgetune.figure import figure
from edgetune.report.charts import STAGE_TITLES
from edgetune.report.columns import Column, column, default_axes
from edgetune.report.facts import Model, Number, Report

COLOURS = {
    "base": "#8b929b",
    "tuned": "#2b6fd4",
    "merged": "#7c5cd6",
    "onnx-fp32": "#c48a12",
    "onnx-exact": "#cf4f8a",
    "bundle": "#0a9070",
}
OTHERS = ("#e07a1f", "#1b9aaa", "#a23b3b", "#5a8f29")
MARKERS = "osD^vPX"
"""Of the sources, where they are few."""


def draw(report: Report, out: Path, *, axes: tuple[str, str] | None = None) -> None:
    """Write the picture; `axes`: keys of the columns across and up.

    Raises RunError if no model has both, or the file cannot be written; ModuleNotFoundError without matplotlib.
    """
    axes = axes or default_axes(report.models)
    models = [model for model in report.models if axes and all(key in model.values for key in axes)]
    if axes is None or not models:
        raise RunError(
            "no model has both a score or loss and its memory or size: there is nothing to draw",
            cure="choose another --format",
        )
    x, y = (column(key) for key in axes)
    with figure(out, (8.0, 4.8), dpi=150) as drawn:
        picture = drawn.add_subplot()
        _line(picture, models, x, y)
        _points(picture, models, x, y)
        found = [model.values[x.key].value for model in models]
        if min(found) > 0 and max(found) > 20 * min(found):
            picture.set_xscale("log")
        picture.set_xlabel(f"{x.axis}, {x.better} is better", color="0.35")
        picture.set_ylabel(f"{y.axis}, {y.better} is better", color="0.35")
        picture.set_title(report.title, loc="left", fontweight="bold", parse_math=False)
        picture.grid(color="0.9")
        picture.set_axisbelow(True)
        picture.spines[:].set_visible(False)
        picture.tick_params(length=0, labelcolor="0.35")
        picture.margins(0.08, 0.12)
        picture.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def front(models: list[Model], x: Column, y: Column) -> list[Model]:
    """The models that no other equals or beats in both columns, from left to right."""

    def cost(model: Model) -> tuple[float, float]:
        signs = [1.0 if item.better == "less" else -1.0 for item in (x, y)]
        return signs[0] * model.values[x.key].value, signs[1] * model.values[y.key].value

    def is_beaten(model: Model) -> bool:
        mine = cost(model)
        return any(other[0] <= mine[0] and other[1] <= mine[1] and other != mine for other in map(cost, models))

    return sorted((model for model in models if not is_beaten(model)), key=lambda model: model.values[x.key].value)


def _line(picture: Any, models: list[Model], x: Column, y: Column) -> None:
    best = front(models, x, y)
    xs, ys = ([model.values[item.key].value * item.factor for model in best] for item in (x, y))
    style = "steps-post" if x.better == "less" else "steps-pre"
    picture.plot(xs, ys, drawstyle=style, color="#0a7f62", linestyle="--", linewidth=1.2, alpha=0.7, zorder=1)


def _points(picture: Any, models: list[Model], x: Column, y: Column) -> None:
    sources = list(dict.fromkeys(model.source for model in models))
    stages, seen = list(dict.fromkeys(model.stage for model in models)), set()
    others = iter(OTHERS * len(stages))
    colours = {stage: COLOURS.get(stage) or next(others) for stage in stages}
    for model in models:
        number, place = model.values[y.key], model.values[x.key].value * x.factor
        marker = MARKERS[sources.index(model.source)] if 1 < len(sources) <= len(MARKERS) else "o"
        label = STAGE_TITLES.get(model.stage, model.stage) if model.stage not in seen else None
        seen.add(model.stage)
        low, high = _bounds(number)
        colour = colours[model.stage]
        picture.vlines(place, low * y.factor, high * y.factor, color=colour, alpha=0.3, linewidth=2, zorder=2)
        picture.scatter(
            place, number.value * y.factor, s=62, color=colour, marker=marker, edgecolors="white", label=label, zorder=3
        )
    if 1 < len(sources) <= len(MARKERS):
        for source, marker in zip(sources, MARKERS, strict=False):
            picture.scatter([], [], s=50, color="0.4", marker=marker, label=source)


def _bounds(number: Number) -> tuple[float, float]:
    return (number.value if bound is None else bound for bound in (number.low, number.high))  # type: ignore[return-value]
