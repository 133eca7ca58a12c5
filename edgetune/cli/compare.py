"""`edgetune compare`: is B really better than A on the same rows? The work is in evaluate/compare.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.cli import console
from edgetune.cli.options import json_option
from edgetune.metric_names import METRIC_NAMES

if TYPE_CHECKING:
    from edgetune.evaluate.compare import Comparison

WIDEST = 160
"""Characters of a text that a line shows."""
SHARES = (*(name for name in METRIC_NAMES if name != "loss"), "fields", "correct", "score")
"""Metrics between 0 and 1, shown as percent."""
NAMES = {**METRIC_NAMES, "fields": "F1 of JSON fields", "correct": "right answers"}


@click.command("compare", epilog="Example: edgetune compare runs/first runs/second --metric json")
@click.argument("a", metavar="A", type=click.Path(path_type=Path))
@click.argument("b", metavar="B", type=click.Path(path_type=Path))
@click.option("--metric", help="What to compare by.  [default: what A was scored by]")
@click.option(
    "--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True, help="Of verdict and interval."
)
@click.option(
    "--rows",
    "shown",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Rows to show on which they differ.",
)
@json_option
def command(a: Path, b: Path, metric: str | None, confidence: float, shown: int, as_json: bool) -> None:
    """Is B better than A? From the saved answers of both to the same rows.

    A and B are run folders (their bundles are compared), the adapter, merged or bundle folder of a run, a folder that
    `edgetune evaluate --out` wrote, a target's in the answers that `edgetune bench --out` keeps, or a file of answers:
    RUN/results/base-answers.jsonl.

    Metrics: those of evaluate, fields (F1 of JSON fields), or any number in the answers.
    """
    from edgetune.evaluate.compare import compare, to_json

    found = compare(a, b, metric=metric and metric.replace("-", "_"), confidence=confidence)
    if as_json:
        console.say_json({**to_json(found), "verdict": verdict(found)})
        return
    for line in lines(found, shown):
        console.say(line)


def lines(found: Comparison, shown: int) -> Iterator[str]:
    """The comparison for people: both scores, the verdict, the rows on which they differ."""
    form, name = _form(found), NAMES.get(found.metric, found.metric)
    width = max(len(found.a.name), len(found.b.name))
    if found.metric == "loss":
        name = f"loss, nats per {'trained token' if found.loss_per == 'token' else 'row (their tokens differ)'}"
    yield f"{name}, {found.rows:,} rows" + (f", {found.left_out:,} out of scope left out" if found.left_out else "")
    yield f"A  {found.a.name.ljust(width)}  {form(found.a_score)}"
    yield f"B  {found.b.name.ljust(width)}  {form(found.b_score)}"
    yield verdict(found)
    if found.differing:
        yield ""
        count, all_rows = min(shown, len(found.differing)), len(found.differing)
        yield f"they differ on {all_rows:,} rows" + ("" if count == all_rows else f", {count:,} of them shown (--rows)")
    for row in found.differing[:shown]:
        yield ""
        yield f"{row.place}  {_line(row.question)}".strip()
        if row.wanted is not None:
            yield f"  wanted  {_line(row.wanted)}"
        for side, text, value in (("A", row.a, row.a_value), ("B", row.b, row.b_value)):
            yield f"  {side} {_value(found, value)}  {_line(text) if text is not None else ''}".rstrip()


def verdict(found: Comparison) -> str:
    """In one line whether B is better, by how much, and how sure that is."""
    form, (low, high) = _form(found, sign="+"), found.interval
    unit = " points" if found.metric in SHARES else ""
    change = (
        f"B - A = {form(found.difference)}{unit} ({100 * found.confidence:.4g}% interval {form(low)} to {form(high)})"
    )
    if found.only_a is None:
        test = f"paired bootstrap, {found.samples:,} resamples, p = {found.p_value:.2g}"
    else:
        test = (
            f"{found.only_b} rows right in B alone, {found.only_a} in A alone; McNemar, exact, p = {found.p_value:.2g}"
        )
    return f"{_claim(found)}: {change}; {test}"


def _claim(found: Comparison) -> str:
    if found.better is not None:
        return "B is better" if found.better == "b" else "A is better"
    if not found.differing:
        return "no row on which they differ"
    from edgetune.evaluate.paired import needed

    if found.only_a is None or found.only_b is None:
        return "these rows do not tell which is better"
    split = found.only_a + found.only_b
    won = needed(split, alpha=1 - found.confidence)
    more = "more rows are needed" if won is None else f"one would have to be right alone on {won} of those {split}"
    return f"these rows do not tell which is better ({more})"


def _form(found: Comparison, *, sign: str = "") -> Callable[[float], str]:
    if found.metric in SHARES:
        return lambda value: f"{100 * value:{sign}.1f}" + ("" if sign else "%")
    return lambda value: f"{value:{sign}.4f}"


def _value(found: Comparison, value: float | None) -> str:
    if found.only_a is not None:
        return "right " if value else "wrong "
    if value is None:
        return "      "
    return f"{value:.4f}"


def _line(text: str) -> str:
    """A text on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 1]}…"
