"""The compare stage: the saved answers of two targets on the same rows -> is B really better than A, and where?

Row by row, so that what makes a row hard for both does not count; needs neither torch nor the models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgetune.errors import RunError
from edgetune.evaluate.answers import Answers, answer, paired, question, read_answers, wanted
from edgetune.evaluate.metrics import count_fields
from edgetune.evaluate.paired import Counted, bootstrap_difference, mcnemar
from edgetune.evaluate.resample import Bootstrap, Interval
from edgetune.evaluate.text_metrics import ROW_SCORES
from edgetune.metric_names import LABEL_METRICS, TEXT_METRICS

Row = Mapping[str, Any]
Pairs = Sequence[tuple[Row, Row]]
SAMPLES = 10_000
LOWER_IS_BETTER = ("loss", "loss_sum", "trained_tokens")


@dataclass(frozen=True)
class Difference:
    """A row on which two targets differ; values by the metric."""

    place: str
    question: str
    wanted: str | None
    a: str | None
    b: str | None
    a_value: float | None
    b_value: float | None
    """Of this row alone; None where the metric has no value for one row."""


@dataclass(frozen=True)
class Comparison:
    """Two targets on the same rows. Shares in 0..1, losses in nats per `loss_per`."""

    metric: str
    a: Answers
    b: Answers
    a_score: float
    b_score: float
    difference: float
    """B - A."""
    interval: Interval
    confidence: float
    test: Literal["mcnemar_exact", "paired_bootstrap"]
    p_value: float
    """Two-sided: how often so much of a difference would be seen if there were none."""
    better: Literal["a", "b"] | None
    """Which one, where the rows can tell."""
    rows: int
    left_out: int
    """Rows out of scope, which count in no score."""
    only_a: int | None
    """Rows that only A has right, where each row is right or wrong; else None."""
    only_b: int | None
    differing: tuple[Difference, ...]
    """Where each row is right or wrong, those that one has right, in their order; else by size of the difference."""
    loss_per: Literal["token", "row"] = "token"
    """"row" where the two count tokens differently."""
    samples: int = SAMPLES
    seed: int = 0


def compare(
    a: Path, b: Path, *, metric: str | None = None, confidence: float = 0.95, samples: int = SAMPLES
) -> Comparison:
    """Compare the saved answers of two targets; see answers.read_answers for what a path may be.

    `metric`: one that rows are scored by, fields, or any number that the answers hold; by default the one that they
    were scored by. Where each row is right or wrong McNemar's exact test decides, else whether the
    paired bootstrap interval holds 0.

    Raises RunError: no answers, other rows, or a metric that they do not have.
    """
    first, second = read_answers(a), read_answers(b)
    pairs, left_out = _in_scope(first, paired(first, second))
    metric = metric or first.metric or _likely_metric(first)
    per = _loss_per(pairs) if metric == "loss" else "token"
    counted = _count(metric, first, pairs, per)
    a_score, b_score = (item.value for item in counted)
    bootstrap = Bootstrap(samples, confidence)
    interval, p_value = bootstrap_difference(*counted, bootstrap)
    only_a = only_b = None
    if is_binary := all(_is_binary(item) for item in counted):
        right_a, right_b = (item.tops[:, 0] > 0 for item in counted)
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        p_value = mcnemar(only_a, only_b)
    difference = b_score - a_score
    is_told = p_value < 1 - confidence if is_binary else not interval[0] <= 0 <= interval[1]
    is_b = (difference > 0) != (metric in LOWER_IS_BETTER)
    return Comparison(
        metric=metric,
        a=first,
        b=second,
        a_score=a_score,
        b_score=b_score,
        difference=difference,
        interval=interval,
        confidence=confidence,
        test="mcnemar_exact" if is_binary else "paired_bootstrap",
        p_value=p_value,
        better=("b" if is_b else "a") if is_told and difference else None,
        rows=len(pairs),
        left_out=left_out,
        only_a=only_a,
        only_b=only_b,
        differing=_differing(pairs, counted, is_binary=is_binary),
        loss_per=per,
        samples=samples,
    )


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON-able values."""
    values = {field.name: getattr(comparison, field.name) for field in dataclasses.fields(comparison)}
    for side in ("a", "b"):
        found: Answers = values.pop(side)
        values[side] = {"name": found.name, "answers": str(found.path), "score": values.pop(f"{side}_score")}
    values["differing"] = [dataclasses.asdict(item) for item in comparison.differing]
    return values


def _likely_metric(found: Answers) -> str:
    """What to compare by where nothing beside the answers says how they were scored."""
    if found.are_labels:
        return "accuracy"
    return "correct" if all(isinstance(row.get("correct"), bool) for row in found.rows) else "loss"


def _in_scope(found: Answers, pairs: Pairs) -> tuple[Pairs, int]:
    """The rows that count in scores, and how many do not, being of the label that means unknown."""
    outside = [found.settings["out_of_scope_label"]]
    kept = [pair for pair in pairs if not (found.are_labels and pair[0]["labels"] == outside)]
    if not kept:
        raise RunError(f"{found.name}: every row is out of scope", cure="score other rows: edgetune evaluate --data")
    return kept, len(pairs) - len(kept)


def _is_binary(found: Counted) -> bool:
    """Whether each row is right or wrong."""
    return found.tops.shape[1] == 1 and bool((found.bottoms == 1).all() and np.isin(found.tops, (0, 1)).all())


def _count(metric: str, found: Answers, pairs: Pairs, per: str) -> tuple[Counted, Counted]:
    """What A and B have of a metric. Raises RunError if their answers do not have it."""
    try:
        if metric in ("macro_f1", "f1"):
            return _count_labels(metric, found, pairs)
        measure = _measures(per).get(metric) or _field(metric)
        sides = [np.array([measure(pair[side]) for pair in pairs], np.float64) for side in (0, 1)]
    except (KeyError, TypeError, ValueError) as error:
        numbers = {
            key for pair in pairs for row in pair for key, value in row.items() if isinstance(value, int | float)
        }
        named = LABEL_METRICS if found.are_labels else (*TEXT_METRICS, "fields")
        raise RunError(
            f"{found.name}: its answers cannot be compared by {metric}: {error}",
            cure=f"choose with --metric: {', '.join([*named, *sorted(numbers - set(named))])}",
        ) from None
    if not all(np.isfinite(side).all() and side[:, 1].sum() > 0 for side in sides):
        raise RunError(f"{found.name}: {metric} is no number on every row", cure="choose another --metric")
    first, second = (Counted(side[:, :1], side[:, 1:]) for side in sides)
    return first, second


def _measures(per: str) -> dict[str, Callable[[Row], tuple[float, float]]]:
    """(top, bottom) of one row by each metric that is a ratio of sums."""

    def texts(row: Row) -> tuple[str, str]:
        if not (isinstance(row["answer"], str) and isinstance(row["reference"], str)):
            raise TypeError("nothing was generated")
        return row["answer"], row["reference"]

    def row_score(name: str, row: Row) -> tuple[float, float]:
        if isinstance(row.get(name), int | float):
            return float(row[name]), 1.0
        return float(ROW_SCORES[name](*texts(row))), 1.0

    def fields(row: Row) -> tuple[float, float]:
        found = count_fields(*texts(row))
        return 2.0 * found.matched, float(found.answered + found.wanted)

    def loss(row: Row) -> tuple[float, float]:
        return float(row["loss_sum"]), float(row["trained_tokens"]) if per == "token" else 1.0

    return {
        **{name: partial(row_score, name) for name in ROW_SCORES},
        "check": _field("score"),
        "fields": fields,
        "loss": loss,
        "accuracy": lambda row: (float(_correct(row)), 1.0),
        "correct": lambda row: (float(_correct(row)), 1.0),
    }


def _field(name: str) -> Callable[[Row], tuple[float, float]]:
    """A number that the answers hold."""

    def read(row: Row) -> tuple[float, float]:
        if not isinstance(row.get(name), int | float):
            raise TypeError(f"{row.get('place', 'a row')} has no such number")
        return float(row[name]), 1.0

    return read


def _correct(row: Row) -> bool:
    if not isinstance(row["correct"], bool):
        raise TypeError("nothing was generated")
    return row["correct"]


def _loss_per(pairs: Pairs) -> Literal["token", "row"]:
    """What to divide nats by so that both are measured alike: tokenizers may cut texts differently."""
    return "token" if all(a.get("trained_tokens") == b.get("trained_tokens") for a, b in pairs) else "row"


def _count_labels(metric: str, found: Answers, pairs: Pairs) -> tuple[Counted, Counted]:
    """Twice the hits, and rows answered and meant, of each label or of the positive one alone."""
    rows = [row for pair in pairs for row in pair]
    if not found.are_labels:
        raise TypeError("they are no labels")
    names = sorted({str(label) for row in rows for label in (*row["labels"], *row["answer"])})
    if metric == "f1":
        names = [name for name in names if name == found.settings["positive_label"]]
        if not names:
            raise ValueError("no positive_label in rows.json beside them")
    else:
        names = [name for name in names if name != found.settings["out_of_scope_label"]]
    numbers = {name: number for number, name in enumerate(names)}
    sides = []
    for side in (0, 1):
        tops, bottoms = np.zeros((2, len(pairs), len(names)))
        for number, row in enumerate(pair[side] for pair in pairs):
            for label in set(row["labels"]) & set(row["answer"]) & set(names):
                tops[number, numbers[label]] = 2.0
            for label in (*row["labels"], *row["answer"]):
                if label in numbers:
                    bottoms[number, numbers[label]] += 1.0
        sides.append(Counted(tops, bottoms))
    return sides[0], sides[1]


def _differing(pairs: Pairs, counted: tuple[Counted, Counted], *, is_binary: bool) -> tuple[Difference, ...]:
    """The rows on which the two differ. By a metric of labels those with other answers, the right ones aside."""
    is_single = counted[0].tops.shape[1] == 1
    values = [_row_values(item) if is_single else [None] * len(pairs) for item in counted]
    found = []
    for number, (a, b) in enumerate(pairs):
        mine, theirs = values[0][number], values[1][number]
        if (mine != theirs) if is_single else (a["answer"] != b["answer"]):
            place = str(a.get("place", ""))
            found.append(Difference(place, question(a), wanted(a), answer(a), answer(b), mine, theirs))
    if is_binary or not is_single:
        return tuple(found)
    return tuple(sorted(found, key=lambda item: -abs((item.b_value or 0.0) - (item.a_value or 0.0))))


def _row_values(found: Counted) -> list[float | None]:
    """Each row's own value; None where it has none, as a text without trained tokens."""
    return [
        float(top / bottom) if bottom else None
        for top, bottom in zip(found.tops[:, 0], found.bottoms[:, 0], strict=True)
    ]
