"""The pictures of the page as Vega-Lite specifications, data inside, colours by the names of page.js. All pure."""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.report.columns import MIB, column, columns, default_axes
from edgetune.report.facts import Confusion, Model, Report, Run
from edgetune.report.spec import Spec, spec
from edgetune.report.training_charts import losses, planner

STAGE_TITLES = {
    "base": "base",
    "tuned": "fine-tuned",
    "merged": "merged",
    "onnx-fp32": "float32 ONNX",
    "onnx-exact": "exact activations",
    "bundle": "bundle",
}


def frontier(models: Sequence[Model]) -> Spec | None:
    """Every model as a point, for the page to draw over the axes a reader chooses; None where there is nothing to draw.

    {"points": [{run, model, stage, values, lows, highs, texts}], "columns": [{key, title, axis, better}], "x", "y"}.
    """
    axes = default_axes(models)
    if axes is None:
        return None
    shown = columns(models)
    points = []
    for model in models:
        points.append(
            {
                "run": model.source,
                "model": model.name,
                "stage": STAGE_TITLES.get(model.stage, model.stage),
                "values": {key: number.value * column(key).factor for key, number in model.values.items()},
                "lows": {
                    key: [number.low * column(key).factor, number.high * column(key).factor]
                    for key, number in model.values.items()
                    if number.low is not None and number.high is not None
                },
                "texts": {key: column(key).form(number.value) for key, number in model.values.items()},
            }
        )
    titles = [{"key": item.key, "title": item.title, "axis": item.axis, "better": item.better} for item in shown]
    return {"points": points, "columns": titles, "x": axes[0], "y": axes[1]}


def ledger(run: Run) -> Spec | None:
    """Score, or loss where there is none, through the steps to the device, with its interval."""
    key = "score" if any("score" in step.values for step in run.ledger) else "loss"
    shown = column(f"score.{run.metric}" if key == "score" and run.metric else key)
    values = []
    for step in run.ledger:
        number = step.values.get(key)
        if number is not None:
            low, high = (number.value if bound is None else bound for bound in (number.low, number.high))
            values.append(
                {
                    "step": step.name,
                    "stage": STAGE_TITLES.get(step.stage, step.stage),
                    "value": number.value * shown.factor,
                    "low": low * shown.factor,
                    "high": high * shown.factor,
                    "text": shown.form(number.value),
                    "interval": shown.form_interval(number) or "-",
                }
            )
    if len(values) < 2:
        return None
    tooltip = [
        {"field": "step", "title": "step"},
        {"field": "text", "title": shown.title},
        {"field": "interval", "title": "interval"},
    ]
    names = [item["step"] for item in values]
    y = {"field": "step", "type": "nominal", "sort": names, "title": None, "axis": {"ticks": False}}
    x = {"type": "quantitative", "title": shown.axis, "scale": {"zero": False}, "axis": {"tickCount": 6}}
    colour = {"field": "stage", "type": "nominal", "legend": None}
    return spec(
        34 * len(values),
        data={"values": values},
        encoding={"y": y, "color": colour, "tooltip": tooltip},
        layer=[
            {
                "mark": {"type": "rule", "strokeWidth": 6, "opacity": 0.25, "strokeCap": "round"},
                "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
                "encoding": {"x": {**x, "field": "value"}},
            },
        ],
    )


def search(run: Run) -> Spec | None:
    """What a search tried: loss over bytes, its front, and what it chose."""
    if run.search is None or not run.search.candidates:
        return None
    values = [
        {
            "settings": item.name,
            "mib": item.size_bytes / MIB,
            "loss": item.loss,
            "is": "chosen" if item.is_chosen else "front" if item.on_front else "candidate",
            **({"score": column("score").form(item.score)} if item.score is not None else {}),
            **({"tokens": column("tokens_per_s").form(item.tokens_per_s)} if item.tokens_per_s is not None else {}),
        }
        for item in run.search.candidates
    ]
    found = [item.loss for item in run.search.candidates]
    scale = {"type": "log", "nice": False} if 0 < 3 * min(found) < max(found) else {"zero": False}
    kinds = ["candidate", "front", "chosen"]
    tooltip = [
        {"field": "settings"},
        {"field": "mib", "title": "weights, MiB", "format": ",.2f"},
        {"field": "loss", "format": ".4f"},
        {"field": "score"},
        {"field": "tokens", "title": "tokens/s"},
    ]
    return spec(
        280,
        data={"values": values},
        encoding={
            "x": {"field": "mib", "type": "quantitative", "title": "weights (MiB)", "scale": {"zero": False}},
            "y": {"field": "loss", "type": "quantitative", "title": "eval loss before repair (nats)", "scale": scale},
        },
        layer=[
            {
                "transform": [{"filter": "datum.is !== 'candidate'"}],
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5, "opacity": 0.6},
            },
            {
                "mark": {"type": "point", "filled": True, "opacity": 0.9},
                "encoding": {
                    "color": {
                        "field": "is",
                        "type": "nominal",
                        "sort": kinds,
                        "title": None,
                        "scale": {"domain": kinds},
                    },
                    "size": {
                        "field": "is",
                        "type": "ordinal",
                        "sort": kinds,
                        "scale": {"domain": kinds, "range": [45, 90, 240]},
                        "legend": None,
                    },
                    "tooltip": tooltip,
                },
            },
        ],
    )


def confusion(found: Confusion) -> Spec:
    """Cells that are not empty, by their share of the row; for more labels than a table shows."""
    values = []
    for truth, row in zip(found.labels, found.counts, strict=True):
        total = sum(row) or 1
        for answer, count in zip(found.labels, row, strict=True):
            if count:
                kind = "right" if truth == answer else "wrong"
                values.append({"truth": truth, "answer": answer, "rows": count, "share": count / total, "is": kind})
    axis = {"labelFontSize": 8, "labelLimit": 120, "ticks": False, "grid": False, "labelOverlap": True}
    side = max(360, 9 * len(found.labels))
    labels = list(found.labels)
    return spec(
        min(side, 760),
        data={"values": values},
        mark={"type": "rect"},
        encoding={
            "x": {"field": "answer", "type": "nominal", "sort": labels, "scale": {"domain": labels}, "axis": axis},
            "y": {"field": "truth", "type": "nominal", "sort": labels, "scale": {"domain": labels}, "axis": axis},
            "color": {"field": "is", "type": "nominal", "title": None, "scale": {"domain": ["right", "wrong"]}},
            "opacity": {
                "field": "share",
                "type": "quantitative",
                "scale": {"type": "sqrt", "range": [0.15, 1]},
                "legend": None,
            },
            "tooltip": [
                {"field": "truth"},
                {"field": "answer"},
                {"field": "rows"},
                {"field": "share", "format": ".1%"},
            ],
        },
    )


def charts(report: Report) -> dict[str, Spec]:
    """Every picture that the report has data for, by the id of its place on the page; "frontier" is no spec yet."""
    found: dict[str, Spec | None] = {
        "frontier": frontier(report.models),
        "losses": losses(report.runs),
        "planner": planner(report.runs),
    }
    for number, run in enumerate(report.runs, 1):
        found[f"ledger-{number}"] = ledger(run)
        found[f"search-{number}"] = search(run)
        if run.confusion is not None:
            found[f"confusion-{number}"] = confusion(run.confusion)
    return {name: drawn for name, drawn in found.items() if drawn is not None}
