"""Pictures of training as Vega-Lite specifications: losses over the steps, memory as planned and as measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgetune.report.columns import MIB
from edgetune.report.facts import Run
from edgetune.report.spec import Spec, spec

MOST_STEPS = 400
"""Training losses of a run that are drawn."""
DIM = {"condition": {"param": "picked", "value": 1}, "value": 0.12}
"""How well a line is seen: while another is picked in the legend, hardly."""


def losses(runs: Sequence[Run]) -> Spec | None:
    """Training loss, averaged over neighbours, and eval loss of all runs over the steps."""
    values = [item for run in runs for item in _losses(run)]
    if not values:
        return None
    least, most = (pick(item["loss"] for item in values) for pick in (min, max))
    is_wide = least > 0 and most > 8 * least
    y = {
        "field": "loss",
        "type": "quantitative",
        "title": "loss (nats)",
        "scale": {"type": "log", "nice": False} if is_wide else {"zero": False},
    }
    x = {
        "field": "step",
        "type": "quantitative",
        "title": "optimizer step",
        "axis": {"format": "d", "tickMinStep": 1, "tickCount": 8},
    }
    is_one = len({item["run"] for item in values}) == 1
    colour = {
        "field": "kind" if is_one else "run",
        "type": "nominal",
        "title": None,
        "sort": None,
        "legend": {"columns": 0 if is_one else 5},
    }
    half = min(8, max(1, max(len(run.curve.training) for run in runs if run.curve) // 40))
    return spec(
        300,
        data={"values": values},
        encoding={"x": x, "y": y, "color": colour},
        layer=[_training_layer(y, colour["field"], half), _evaluation_layer()],
    )


def _losses(run: Run) -> Iterator[dict[str, Any]]:
    if run.curve is None:
        return
    every = max(1, -(-len(run.curve.training) // MOST_STEPS))
    for kind, curve in (("training", run.curve.training[::every]), ("evaluation", run.curve.evaluation)):
        for step, loss in curve:
            yield {"run": run.name, "kind": kind, "step": step, "loss": float(f"{loss:.5g}")}


def _training_layer(y: Spec, picked_by: Any, half: int) -> Spec:
    """The losses as they are, thin, and their mean over `half` neighbours on either side."""
    mean = {
        "window": [{"op": "mean", "field": "loss", "as": "mean"}],
        "frame": [-half, half],
        "groupby": ["run"],
        "sort": [{"field": "step"}],
    }
    picked = {"name": "picked", "select": {"type": "point", "fields": [picked_by]}, "bind": "legend"}
    return {
        "transform": [{"filter": "datum.kind === 'training'"}, mean],
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.25}},
            {
                "params": [picked],
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {"y": {**y, "field": "mean"}, "opacity": DIM},
            },
        ],
    }


def _evaluation_layer() -> Spec:
    tooltip = [
        {"field": "run", "title": "run"},
        {"field": "kind", "title": "loss of"},
        {"field": "step", "title": "step"},
        {"field": "loss", "title": "nats", "format": ".4f"},
    ]
    return {
        "transform": [{"filter": "datum.kind === 'evaluation'"}],
        "mark": {"type": "line", "strokeWidth": 2.5, "point": {"size": 55, "filled": True}},
        "encoding": {"opacity": DIM, "tooltip": tooltip, "detail": {"field": "run"}},
    }


def planner(runs: Sequence[Run]) -> Spec | None:
    """Parts of the memory that was expected of training, and a mark where it was measured."""
    parts, measured = [], []
    for run in runs:
        if run.planned is None:
            continue
        for place, (part, size) in enumerate(run.planned.parts.items()):
            if size:
                parts.append({"run": run.name, "part": part, "mib": size / MIB, "place": place})
        if run.planned.measured_bytes is not None:
            measured.append({"run": run.name, "mib": run.planned.measured_bytes / MIB})
    if not parts:
        return None
    y = {"field": "run", "type": "nominal", "sort": None, "title": None, "axis": {"ticks": False}}
    names = list(dict.fromkeys(item["part"] for item in parts))
    runs_shown = list(dict.fromkeys(item["run"] for item in parts))
    band = 44 if len(runs_shown) <= 6 else 24
    tooltip = [{"field": "run"}, {"field": "part"}, {"field": "mib", "title": "MiB", "format": ",.1f"}]
    return spec(
        band * len(runs_shown),
        layer=[
            {
                "data": {"values": parts},
                "mark": {"type": "bar", "height": {"band": 0.62}},
                "encoding": {
                    "y": y,
                    "x": {
                        "field": "mib",
                        "type": "quantitative",
                        "title": "memory of training (MiB)",
                        "axis": {"tickCount": 6},
                    },
                    "color": {
                        "field": "part",
                        "type": "nominal",
                        "sort": names,
                        "title": None,
                        "legend": {"orient": "bottom", "columns": 4, "labelLimit": 170},
                    },
                    "order": {"field": "place"},
                    "tooltip": tooltip,
                },
            },
            {
                "data": {"values": measured},
                "mark": {"type": "tick", "thickness": 4, "size": band - 4},
                "encoding": {
                    "y": y,
                    "x": {"field": "mib", "type": "quantitative"},
                    "tooltip": [{"field": "run"}, {"field": "mib", "title": "measured, MiB", "format": ",.1f"}],
                },
            },
        ],
    )
