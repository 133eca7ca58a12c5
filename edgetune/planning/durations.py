"""How long each stage of a run takes on this machine, about: rows counted, rates measured for a second."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgetune.planning import decoder_work, encoder_work
from edgetune.planning.facts import Facts
from edgetune.planning.stages import StageName
from edgetune.planning.work import Work, look_at_machine
from edgetune.task_names import TaskName

if TYPE_CHECKING:
    from edgetune.data.read import Split
    from edgetune.recipe import Recipe

COUNTED_ROWS = 100_000
"""Rows of a source that are counted at most."""
MERGE_S = 4e-8
"""Of a weight that is read, put on the grid of training, merged and written."""


class TaskWork(Protocol):
    """How long scoring and export of a task take: a module of functions."""

    def scoring_s(self, work: Work, /) -> float:
        """Seconds of all evaluations after the training."""

    def export_s(self, work: Work, /) -> dict[StageName, float]:
        """Seconds of the export's stages by name, of more than the recipe may have."""


TASKS: dict[TaskName, TaskWork] = {"generation": decoder_work, "classification": encoder_work}
"""By model.task."""


@dataclass(frozen=True)
class Duration:
    """How long training will take here, about."""

    rows: int
    is_all: bool
    """False: there are more rows than were counted, and it takes longer."""
    tokens: int
    """Of the whole training."""
    steps: int
    tokens_per_s: float

    @property
    def seconds(self) -> float:
        """Of training steps; evaluations come on top."""
        return self.tokens / self.tokens_per_s


def training_duration(facts: Facts) -> Duration:
    """Count the training rows and measure this machine for a moment."""
    from edgetune.model.duration import training_tokens_per_s
    from edgetune.train.schedule import optimizer_steps

    recipe, counts = facts.recipe, facts.rows["train"]
    most = min(recipe.data.max_train_rows or COUNTED_ROWS, COUNTED_ROWS)
    rows = _count(recipe, "train", most)
    is_all = rows < COUNTED_ROWS
    rows *= 1 + recipe.data.swapped_copies
    length = facts.mean(counts)
    is_packed = recipe.data.packing and not recipe.is_idle("data.packing")
    a_sequence = max(1.0, recipe.data.max_seq_len / length) if is_packed else 1.0
    an_epoch, steps = optimizer_steps(recipe, math.ceil(rows / a_sequence))
    speed = training_tokens_per_s(recipe, trained_share=facts.trained_share, sample_tokens=round(length))
    return Duration(rows, is_all, round(steps / an_epoch * rows * length), steps, speed)


def stage_durations(facts: Facts, training: Duration) -> dict[StageName, float]:
    """Seconds of each stage; of more than the recipe may have."""
    recipe = facts.recipe
    most = recipe.evaluate.max_rows or COUNTED_ROWS
    eval_rows = _count(recipe, "eval", COUNTED_ROWS)
    work = Work(
        facts,
        look_at_machine(facts),
        train_rows=training.rows,
        eval_rows=eval_rows,
        scored_rows=_count(recipe, "test", most),
        steps=training.steps,
        step_tokens=training.tokens / max(1, training.steps),
        train_seconds=training.seconds,
    )
    task = TASKS[recipe.model.task]
    tries = 3 if recipe.export.merge_base == "auto" else 1
    tried = (tries - 1) * work.forward_s(eval_rows * facts.mean(facts.scored), is_float=True)
    return {
        "train": training.seconds,
        "evaluations": work.training_evaluations_s + task.scoring_s(work),
        "merge": tries * MERGE_S * facts.parameters + tried,
        **task.export_s(work),
    }


def _count(recipe: Recipe, which: Split, most: int) -> int:
    from edgetune.data.prepare import examples

    return sum(1 for _ in itertools.islice(examples(recipe, which), most))
