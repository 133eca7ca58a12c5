"""A table of real trainings over a grid of hyperparameters, and a workbench that answers from it.

A search of many seeds by six methods is thousands of trainings; a table is a dozen, once, and every search over it then
costs nothing and can be done as often as one likes. Between the grid's points losses and scores are interpolated
(multilinear, over the keys' logarithms), so that the best of the table is known. Source of the idea: Eggensperger et
al. 2015, Efficient Benchmarking of Hyperparameter Optimizers via Surrogates.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.errors import DivergedError
from edgetune.recipe import Recipe
from edgetune.tune.space import recipe_with
from edgetune.tune.trial import Measured, TrialDir, Workbench

MARKS = 10
"""Points of a training's course that are kept: its tenths."""
SCORE = MARKS + 1
"""Place of the int4 score in a row of the table."""
DIVERGED = 20.0
"""Nats: what stands in the table for a training that diverged."""


@dataclass(frozen=True)
class Axis:
    """One key of the grid; between its points values are interpolated by their logarithm."""

    key: str
    points: tuple[float, ...]

    def place(self, value: float) -> tuple[int, float]:
        """The point below a value, and how far it lies on the way to the next one, 0 to 1."""
        logs = [math.log(point) for point in self.points]
        wanted = min(max(math.log(value), logs[0]), logs[-1])
        below = min(max(sum(log <= wanted for log in logs) - 1, 0), len(logs) - 2)
        return below, (wanted - logs[below]) / (logs[below + 1] - logs[below])


def grid(axes: Sequence[Axis]) -> Iterator[dict[str, float]]:
    """Every combination of the axes' points."""
    for values in itertools.product(*(axis.points for axis in axes)):
        yield dict(zip((axis.key for axis in axes), values, strict=True))


def train_entry(bench: Workbench, recipe: Recipe, values: Mapping[str, float], folder: Path) -> dict[str, Any]:
    """One training of the table: its eval losses by tenths of its course, tokens, seconds, and its int4 scores: with
    each weight rounded by itself, and under "exported" calibrated and repaired.
    """
    changed = recipe_with(recipe, values)
    course: list[tuple[float, float]] = []
    tokens = 0

    def watch(event: Mapping[str, Any]) -> None:
        nonlocal tokens
        tokens = event.get("tokens", tokens)
        if "train_loss" in event:
            course.append((event["step"] / event["steps"], event["eval_loss"]))

    try:
        measured = bench.measure(changed, folder, progress=watch)
    except DivergedError:
        return {"values": dict(values), "diverged": True, "tokens": tokens}
    shares, losses = zip(*course, strict=True)
    tenths = np.interp(np.arange(1, MARKS + 1) / MARKS, shares, losses)
    started = time.perf_counter()
    as_exported = dataclasses.replace(changed, tune=dataclasses.replace(changed.tune, score_of="exported"))
    exported = bench.score(as_exported, TrialDir(folder, shared_cache=bench.cache))
    return {
        "values": dict(values),
        "eval_losses": [round(float(loss), 5) for loss in tenths],
        **scores(measured),
        "tokens": measured.tokens,
        "wall_s": round(measured.wall_s, 1),
        "exported": {**scores(exported), "wall_s": round(time.perf_counter() - started, 1)},
    }


def scores(found: Any) -> dict[str, float]:
    """The score of a measured model, its loss where that is the metric; and the loss."""
    return {"score": found.loss if found.score is None else found.score, "loss": found.loss}


class TableBench:
    """A workbench of which every training stands in a table, or between its entries."""

    base_sha256 = "table"

    def __init__(
        self, axes: Sequence[Axis], entries: Sequence[Mapping[str, Any]], *, worst_score: float, learning_rate: float
    ) -> None:
        """`entries` of the whole grid; `worst_score` is that of a training that diverged; `learning_rate` what "auto"
        is.
        """
        self.axes, self.learning_rate = tuple(axes), learning_rate
        self.tokens = int(np.median([entry["tokens"] for entry in entries if "tokens" in entry]))
        """Of a training that goes straight through; one that diverges and restarts takes more."""
        shape = tuple(len(axis.points) for axis in axes)
        self.is_exported = all("exported" in entry or "diverged" in entry for entry in entries)
        """Whether the scores are those of models calibrated and repaired; of an older table they are not."""
        rows = {self._key(entry["values"]): self._row(entry, worst_score) for entry in entries}
        table = [rows[self._key(values)] for values in grid(axes)]
        self._table = np.array(table).reshape(*shape, MARKS + 3)

    def peak_bytes(self, recipe: Recipe) -> int:  # noqa: ARG002
        """Nothing is trained."""
        return 0

    def room_bytes(self, recipe: Recipe) -> int:  # noqa: ARG002
        """Nothing is trained."""
        return 1

    def measure(self, recipe: Recipe, folder: Path, *, progress: Callable[[Mapping[str, Any]], None]) -> Measured:
        """The course of a training, told as it would be, and its score."""
        folder.mkdir(parents=True, exist_ok=True)
        found = self.look_up(recipe)
        tokens = round(float(found[-1]))
        for mark in range(1, MARKS + 1):
            event = {"stage": "train", "step": mark, "steps": MARKS, "tokens": tokens * mark // MARKS}
            progress({**event, "eval_loss": float(found[mark - 1]), "train_loss": float(found[mark - 1])})
        loss, score = float(found[MARKS]), float(found[MARKS + 1])
        is_loss = recipe.evaluate.metric == "loss"
        return Measured(None if is_loss else score, loss, loss, 1, tokens, MARKS, 0.0, 0.0, 0)

    def look_up(self, recipe: Recipe) -> Any:
        """(MARKS + 3,): eval losses by tenths, the int4 loss, the int4 score, tokens."""
        values = self._table
        for axis in self.axes:
            table, _, key = axis.key.partition(".")
            below, share = axis.place(float(getattr(getattr(recipe, table), key)))
            values = (1 - share) * values[below] + share * values[below + 1]
        return values

    @property
    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest score of the table: the metric says which of the two is the best there is."""
        return float(self._table[..., SCORE].min()), float(self._table[..., SCORE].max())

    def _key(self, values: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(float(values[axis.key]) for axis in self.axes)

    def _row(self, entry: Mapping[str, Any], worst_score: float) -> list[float]:
        tokens = entry.get("tokens", self.tokens)
        if entry.get("diverged"):
            return [DIVERGED] * (MARKS + 1) + [worst_score, tokens]
        scores = entry.get("exported", entry) if self.is_exported else entry
        return [*entry["eval_losses"], scores["loss"], scores["score"], tokens]
