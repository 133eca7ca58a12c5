"""New rows with a share of the old ones: what an adapter goes on from without forgetting.

In the flow: the data of a run and a source of new rows -> one file of training rows, one of eval rows, both mixed, and
the two kinds of eval rows apart -> a training that goes on, and the scores before and after it.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgetune.data.formats import Example
from edgetune.data.prepare import examples
from edgetune.data.task import TASKS
from edgetune.errors import DataError
from edgetune.files import write_text
from edgetune.recipe import Recipe

_Item = TypeVar("_Item")
TRAIN, EVAL, OLD_EVAL, NEW_EVAL = "train.jsonl", "eval.jsonl", "old-eval.jsonl", "new-eval.jsonl"


@dataclass(frozen=True)
class Mixture:
    """What the files hold."""

    new_train: int
    replayed: int
    """Old rows among the training rows."""
    new_eval: int
    old_eval: int
    """All old eval rows; as many of them as belong to the share are eval rows of the training."""
    left_out: int
    """New rows that are eval rows as well, and so are not learned."""

    @property
    def summary(self) -> str:
        """The rows in one line."""
        told = f"{self.new_train:,} new rows and {self.replayed:,} old ones to learn from; "
        told += f"{self.new_eval:,} new and {self.old_eval:,} old ones to score"
        return told + (f"; {self.left_out:,} new rows left out, which are eval rows too" if self.left_out else "")


def mix(old: Recipe, new: Recipe, folder: Path, *, share: float, labels: tuple[str, ...] = ()) -> Mixture:
    """Write the rows of two recipes into a folder as JSON lines: of the training rows a `share` (0 to below 1) is old.

    Drawn by the old recipe's seed; where there are too few old rows, all are taken. A new row that is an eval row of
    either kind is not learned. `labels`: those of the model that goes on, which can learn no others.
    Raises DataError: unreadable rows, rows of two kinds, other labels, nothing new to learn.
    """
    draw = random.Random(old.train.seed)
    old_eval, new_eval = (list(examples(recipe, "eval")) for recipe in (old, new))
    held_out = {_content(example) for example in (*old_eval, *new_eval)}
    every = list(_first(new))
    new_train = [example for example in every if _content(example) not in held_out]
    if not new_train:
        raise DataError(f"{new.data.train}: holds no new row to learn from", cure="give rows that are no eval rows")
    _refuse_two_kinds(old_eval[0], (*new_train, *new_eval))
    TASKS[old.model.task].refuse_other_labels((*new_train, *new_eval), labels, old)
    ratio = share / (1 - share)
    replayed = _drawn(
        (row for row in _first(old) if _content(row) not in held_out), round(ratio * len(new_train)), draw
    )
    replayed_eval = _drawn(old_eval, max(1, round(ratio * len(new_eval))) if share else 0, draw)
    written = {
        TRAIN: [*new_train, *replayed],
        EVAL: [*new_eval, *replayed_eval],
        OLD_EVAL: old_eval,
        NEW_EVAL: new_eval,
    }
    for name, rows in written.items():
        write_rows(folder / name, rows, old)
    return Mixture(len(new_train), len(replayed), len(new_eval), len(old_eval), len(every) - len(new_train))


def sample(recipe: Recipe, most: int) -> list[Example]:
    """Training and eval rows of a recipe, at most so many, drawn by its seed."""
    every = itertools.chain(_first(recipe), examples(recipe, "eval"))
    return _drawn(every, most, random.Random(recipe.train.seed))


def write_rows(path: Path, rows: Iterable[Example], recipe: Recipe) -> None:
    """Examples of a recipe as JSON lines that read back as they are. Raises RunError."""
    as_row = TASKS[recipe.model.task].as_row
    lines = (json.dumps(as_row(row, recipe), ensure_ascii=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def _first(recipe: Recipe) -> Iterator[Example]:
    return itertools.islice(examples(recipe, "train"), recipe.data.max_train_rows)


def _content(example: Example) -> tuple[Any, ...]:
    """What makes two rows the same, wherever they lie."""
    return example.messages, example.text, example.labels, example.tools_json


def _drawn(rows: Iterable[_Item], count: int, draw: random.Random) -> list[_Item]:
    """`count` of the rows, or all if they are fewer, each as likely; no more than that is held.

    Source: reservoir sampling, Vitter 1985, ACM Transactions on Mathematical Software 11, algorithm R.
    """
    kept: list[_Item] = []
    for number, row in enumerate(rows):
        if len(kept) < count:
            kept.append(row)
        elif (place := draw.randrange(number + 1)) < count:
            kept[place] = row
    return kept


def _refuse_two_kinds(old: Example, new: Iterable[Example]) -> None:
    """Raises DataError for plain texts among conversations, or the other way round."""
    for example in new:
        if bool(example.messages) != bool(old.messages):
            kinds = ["a conversation" if item.messages else "a plain text" for item in (example, old)]
            raise DataError(
                f"{example.place}: is {kinds[0]}, the old rows are each {kinds[1]}", cure="give rows of the same kind"
            )
