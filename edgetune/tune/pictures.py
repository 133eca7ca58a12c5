"""A search and a sensitivity as pictures: numbers of tune.json and sensitivity.json -> PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.figure import figure

BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.6"
NEAR = 0.12
"""How close the values of one key lie, in rows."""


def draw_history(document: Mapping[str, Any], out: Path) -> None:
    """The first objective of every trial over the tokens spent, the best so far as a line; trials given up as ticks."""
    is_loss = document["directions"][0] == "minimize"
    tokens, best, points, line, lost = 0, None, [], [], []
    for trial in document["trials"]:
        if trial["state"] not in ("complete", "pruned"):
            continue
        tokens += trial.get("tokens") or 0
        if trial["state"] == "pruned":
            lost.append(tokens)
            continue
        value = trial["objectives"][0]
        points.append((tokens, value))
        best = value if best is None else (min if is_loss else max)(best, value)
        line.append((tokens, best))
    with figure(out, (7.0, 4.0)) as drawn:
        axes = drawn.add_subplot()
        axes.scatter(*zip(*points, strict=True), s=14, color=BLUE, alpha=0.6, label="trial")
        axes.step(*zip(*line, strict=True), where="post", color=ORANGE, label="best so far")
        if lost:
            axes.plot(lost, [0.02] * len(lost), "|", color=GREY, transform=axes.get_xaxis_transform(), label="given up")
        axes.set(xlabel="tokens trained on", ylabel=_objective(document), title=document["recipe"])
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)


def draw_slices(document: Mapping[str, Any], out: Path) -> None:
    """A panel for each key: the first objective over its values; later trials are darker, the best one is marked."""
    trials, keys = _complete(document), list(document["space"])
    across = min(4, len(keys))
    down = -(-len(keys) // across)
    with figure(out, (3.2 * across, 2.8 * down)) as drawn:
        for number, key in enumerate(keys, 1):
            axes = drawn.add_subplot(down, across, number)
            item = document["space"][key]
            made = [trial for trial in trials if key in trial["values"]]
            places = [_along(item, trial["values"][key]) for trial in made]
            values = [trial["objectives"][0] for trial in made]
            axes.scatter(places, values, c=range(len(made)), cmap="Blues", vmin=-len(made) / 2, s=16)
            best = document["best"]
            axes.plot(_along(item, best["values"][key]), best["objectives"][0], "*", color=ORANGE, markersize=10)
            _mark(axes.set_xticks, item)
            axes.set(xlabel=key, xlim=(-0.06, 1.06))
            axes.grid(alpha=0.25)
        drawn.supylabel(_objective(document))


def draw_parallel(document: Mapping[str, Any], out: Path) -> None:
    """Every measured trial as a line through its values, coloured by the first objective; the best one stands out."""
    trials, keys = _complete(document), list(document["space"])
    values = [trial["objectives"][0] for trial in trials]
    low, high = min(values), max(values)
    with figure(out, (2.0 + 1.5 * len(keys), 4.2)) as drawn:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        axes, norm = drawn.add_subplot(), Normalize(low, high if high > low else low + 1)
        colours = colormaps["viridis"]
        for trial in trials:
            line = [_along(document["space"][key], trial["values"][key]) for key in keys if key in trial["values"]]
            is_best = trial["number"] == document["best"]["number"]
            colour = ORANGE if is_best else colours(norm(trial["objectives"][0]))
            axes.plot(line, color=colour, linewidth=2.5 if is_best else 1.0, alpha=1.0 if is_best else 0.6)
        for at, key in enumerate(keys):
            axes.axvline(at, color=GREY, linewidth=0.8)
            for place, text in _ticks(document["space"][key]):
                axes.annotate(text, (at, place), textcoords="offset points", xytext=(3, 0), fontsize=7)
        axes.set_xticks(range(len(keys)), [key.partition(".")[2] for key in keys])
        axes.set_yticks([])
        axes.set(xlim=(-0.1, len(keys) - 0.6), title=f"{document['recipe']}: the best in orange")
        drawn.colorbar(ScalarMappable(norm, colours), ax=axes, label=_objective(document))


def draw_front(document: Mapping[str, Any], out: Path) -> None:
    """Of several objectives the second over the first: all measured trials, and the Pareto front as a line."""
    names = document["objectives"]
    front = sorted((trial["objectives"][:2] for trial in document["front"]), key=lambda values: values[0])
    with figure(out, (6.0, 4.2)) as drawn:
        axes = drawn.add_subplot()
        every = [trial["objectives"][:2] for trial in _complete(document)]
        axes.scatter(*zip(*every, strict=True), s=16, color=BLUE, alpha=0.6, label="trial")
        axes.plot(*zip(*front, strict=True), "o-", color=ORANGE, label="Pareto front")
        better = ["more is better" if way == "maximize" else "less is better" for way in document["directions"]]
        axes.set(xlabel=f"{_objective(document)} ({better[0]})", ylabel=f"{names[1]} ({better[1]})")
        axes.set_title(document["recipe"])
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)


def draw_importances(views: Mapping[str, Mapping[str, float]], out: Path, *, title: str) -> None:
    """Bars: what share of the variance each key explains alone; a panel for each view, e.g. "score"."""
    names = list(next(iter(views.values())))[::-1]
    with figure(out, (3.0 + 4.0 * len(views), 1.2 + 0.35 * len(names))) as drawn:
        panels = drawn.subplots(1, len(views), squeeze=False, sharey=True)[0]
        for axes, (view, shares) in zip(panels, views.items(), strict=True):
            axes.barh(names, [shares[name] for name in names], color=BLUE)
            axes.set(xlabel="share of the variance (fANOVA)", title=view)
            axes.grid(alpha=0.25, axis="x")
        drawn.suptitle(title)


def draw_interactions(pairs: Sequence[Any], trials: Sequence[Mapping[str, Any]], out: Path, *, objective: str) -> None:
    """For each pair what the forest expects over both keys, and the trials that were measured as dots."""
    with figure(out, (5.2 * len(pairs), 4.2)) as drawn:
        for number, pair in enumerate(pairs, 1):
            axes = drawn.add_subplot(1, len(pairs), number)
            image = axes.imshow(pair.expected, origin="lower", aspect="auto", cmap="viridis")
            drawn.colorbar(image, ax=axes, label=f"{objective}, expected")
            across, up = ([_short(value) for value in axis] for axis in pair.axes)
            axes.set_xticks(range(len(across)), across, rotation=60, fontsize=7)
            axes.set_yticks(range(len(up)), up, fontsize=7)
            places = [_places(pair, trial["values"]) for trial in trials if trial["state"] == "complete"]
            axes.plot(*zip(*places, strict=True), "o", color="white", markeredgecolor="black", markersize=4)
            axes.set(xlabel=pair.keys[0], ylabel=pair.keys[1], title=f"together beyond each alone: {pair.share:.0%}")


def draw_sensitivity(document: Mapping[str, Any], out: Path) -> None:
    """For each key the effect of its values with 95 % intervals, the key that matters most on top."""
    keys, trainings = document["keys"], document["trainings"]
    partial = f", partial: {trainings['finished']} of {trainings['planned']} trainings"
    title = document["recipe"] + (partial if document["is_partial"] else "")
    with figure(out, (8.0, 1.4 + 0.7 * len(keys))) as drawn:
        axes = drawn.add_subplot()
        axes.axvline(0.0, color="black", linewidth=0.8)
        if document["noise"]:
            axes.axvspan(
                -document["noise"], document["noise"], color=GREY, alpha=0.2, label="what a seed alone changes"
            )
            axes.legend(frameon=False, loc="lower right", fontsize=8)
        for at, key in enumerate(reversed(keys)):
            made = [step for step in key["steps"] if step["effect"] is not None]
            for place, step in enumerate(made):
                row, effect = at + (place - (len(made) - 1) / 2) * NEAR * 1.6, step["effect"]
                if effect["low"] is not None:
                    axes.plot([effect["low"], effect["high"]], [row, row], color=BLUE, linewidth=1.2, alpha=0.7)
                axes.plot(effect["mean"], row, "o", color=BLUE, markersize=4)
                axes.annotate(
                    _short(step["value"]), (effect["mean"], row), textcoords="offset points", xytext=(5, -3), fontsize=7
                )
        names = [f"{key['key']}\nnow {_short(key['own'])}" for key in reversed(keys)]
        axes.set_yticks(range(len(keys)), names, fontsize=8)
        axes.set(xlabel=f"{_objective(document)}: better by, against the recipe as it is", title=title)
        axes.grid(alpha=0.25, axis="x")


def _complete(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [trial for trial in document["trials"] if trial["state"] == "complete"]


def _along(item: Mapping[str, Any], value: Any) -> float:
    """Where a value of a key stands, 0 to 1: in its range, or among its choices."""
    if "values" in item:
        return _at(item["values"], value) / max(1, len(item["values"]) - 1)
    if item["log"]:
        return math.log(value / item["low"]) / math.log(item["high"] / item["low"])
    return float((value - item["low"]) / (item["high"] - item["low"]))


def _at(choices: Sequence[Any], value: Any) -> int:
    """The place of a choice; true is not 1."""
    return next((at for at, choice in enumerate(choices) if json.dumps(choice) == json.dumps(value)), 0)


def _ticks(item: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Places and texts: both ends and the middle of a range, or every choice."""
    if "values" in item:
        return [(_along(item, choice), _short(choice)) for choice in item["values"]]
    low, high = item["low"], item["high"]
    middle = math.sqrt(low * high) if item["log"] else (low + high) / 2
    return [(0.0, _short(low)), (0.5, _short(float(middle))), (1.0, _short(high))]


def _mark(set_ticks: Any, item: Mapping[str, Any]) -> None:
    places, texts = zip(*_ticks(item), strict=True)
    set_ticks(places, texts, fontsize=7)


def _objective(document: Mapping[str, Any]) -> str:
    name = document["objectives"][0] if "objectives" in document else document["objective"]
    return f"{document['metric']} on eval rows" if name == "score" else str(name)


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def _places(pair: Any, values: Mapping[str, Any]) -> tuple[float, float]:
    """Where a trial lies among the values of both axes, in steps; between two of them by its nearest ones."""
    found = []
    for key, axis in zip(pair.keys, pair.axes, strict=True):
        value = values[key]
        if value in axis:
            found.append(float(axis.index(value)))
        else:
            above = next((at for at, other in enumerate(axis) if other > value), len(axis) - 1)
            low, high = axis[max(0, above - 1)], axis[above]
            found.append(above - 1 + (value - low) / (high - low) if high != low else float(above))
    return found[0], found[1]


def draw_population(document: Mapping[str, Any], out: Path) -> None:
    """Of a population every member's eval loss, and each of its values, over the steps; what the best one comes from in
    orange.
    """
    made = {(one["generation"], one["member"]): one for one in document["outcomes"]}
    line, one = [], document["best"]
    while one is not None:
        line.append(one)
        one = made.get((one["generation"] - 1, one["parent"]))
    keys = list(document["space"])
    with figure(out, (7.0, 2.2 * (1 + len(keys)))) as drawn:
        panels = drawn.subplots(1 + len(keys), 1, sharex=True)
        for axes, key in zip(panels, (None, *keys), strict=True):
            for member in range(document["population"]):
                own = [one for (_, number), one in made.items() if number == member]
                axes.plot(*_course(own, key), color=GREY, linewidth=1.0, marker=".")
            axes.plot(*_course(line[::-1], key), color=ORANGE, linewidth=2.0, marker="o", markersize=4)
            axes.set_ylabel("eval loss" if key is None else key.partition(".")[2])
            if key is not None and document["space"][key].get("log"):
                axes.set_yscale("log")
            axes.grid(alpha=0.25)
        panels[0].set_title(f"{document['recipe']}: what the best member comes from in orange")
        panels[-1].set_xlabel("optimizer step")


def _course(outcomes: Sequence[Mapping[str, Any]], key: str | None) -> tuple[list[int], list[float]]:
    """Steps, and of each the eval loss (nan once it has diverged) or the value with which it came there."""
    values = []
    for one in outcomes:
        if key is None:
            values.append(math.nan if one["eval_loss"] is None else one["eval_loss"])
        else:
            lineage = one["lineage"]
            values.append([lineage["values"][key], *(item[key] for item in lineage["changes"] if key in item)][-1])
    return [one["step"] for one in outcomes], values
