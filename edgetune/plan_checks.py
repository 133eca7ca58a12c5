"""What a plan holds a recipe against: base, adapter, rows, metric and machine. All that would stop a later stage.

In the flow: the first half of plan.py. Reads config.json, headers, tokenizer and rows; loads no weights. What differs
by task is in planning/.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.errors import RunError
from edgetune.planning.findings import CHECKED_ROWS, Findings
from edgetune.planning.task import TASKS
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

if TYPE_CHECKING:
    from edgetune.data.read import Split

SCORED_ROWS = 2000
"""Of the rows that will be scored, how many are encoded where nothing but a plan is asked for."""


@dataclass(frozen=True)
class Checked:
    """A recipe that can be run."""

    rows: dict[str, dict[str, int]]
    """Counts over the first rows of each source."""
    labels: int
    """Of the training rows; 0 where the task has none."""
    notes: tuple[str, ...]


def check_recipe(recipe: Recipe, *, on: str, scored_rows: int | None, progress: Progress | None = None) -> Checked:
    """Hold a recipe, planned for a "cpu" or "cuda" device, against all that it names; of the rows that will be scored
    so many are encoded, None: all.

    Raises RecipeError with all problems, or the only one as it is.
    """
    found = Findings()
    base, tokenizer = _check_base(recipe, found, progress)
    _check_machine(recipe, base, found, on=on)
    labels, rows = _check_rows(recipe, tokenizer, found)
    if base is not None and tokenizer is not None and rows and None not in rows.values():
        task = TASKS[recipe.model.task]
        task.check_use(recipe, base, tokenizer, labels, found, scored_rows)
    found.raise_any()
    return Checked(rows, len(labels), tuple(found.notes))


def _check_base(recipe: Recipe, found: Findings, progress: Progress | None) -> tuple[Path | None, Any]:
    """The base's folder and tokenizer, as far as they can be had, once the recipe's adapter fits them."""
    from edgetune.lora.adapter import check_adapter, check_targets
    from edgetune.model.base import base_folder, check_base, check_shapes, load_tokenizer
    from edgetune.quantize.matrices import check_int8_layers

    table, attempt, is_trusted = recipe.model, found.attempt, recipe.model.trust_remote_code
    base = attempt(lambda: base_folder(table, progress=progress))
    if base is None:
        return None, None
    is_sound = attempt(lambda: check_base(base, trust_remote_code=is_trusted, task=table.task))
    is_sound = is_sound and TASKS[table.task].check_base(recipe, base, found)
    if adapter := recipe.lora.init_from:
        attempt(lambda: check_adapter(Path(adapter).expanduser(), base, table))
    if not is_sound:  # whatever else is wrong follows from that
        return base, None
    if found.holds(lambda: check_shapes(base)):
        attempt(lambda: check_int8_layers(base, recipe))
        attempt(lambda: found.notes.extend(check_targets(base, recipe)))
    return base, attempt(lambda: load_tokenizer(base, trust_remote_code=is_trusted))


def _check_machine(recipe: Recipe, base: Path | None, found: Findings, *, on: str) -> None:
    """Packages, and what this machine's device can do where it is the one that is planned for."""
    from edgetune.model.config import read_config
    from edgetune.model.device import device
    from edgetune.train.liger import check_liger
    from edgetune.train.optimizer import check_optimizer
    from edgetune.train.trackers import check_trackers

    table = recipe.train
    found.attempt(lambda: check_trackers(table.trackers))
    if on != device().type:
        return
    found.attempt(lambda: check_optimizer(table.optimizer, on))
    if base is not None and table.use_liger_kernel:
        found.attempt(lambda: check_liger(True, read_config(base).get("model_type", "")))


def _check_rows(recipe: Recipe, tokenizer: Any, found: Findings) -> tuple[Sequence[str], dict[str, dict[str, int]]]:
    """The labels, and counts over the first rows of each source; None where they cannot be read."""
    from edgetune.data.folds import deal
    from edgetune.data.splits import has_own_rows, is_trained_on
    from edgetune.evaluate.rows import check_metric

    attempt, rows = found.attempt, dict[str, dict[str, int]]()
    labels = attempt(lambda: TASKS[recipe.model.task].labels(recipe))
    splits: tuple[Split, ...] = ("train", "eval", "test")
    for which in () if labels is None else splits:
        if not attempt(functools.partial(has_own_rows, recipe, which)):
            continue
        rows[which] = attempt(functools.partial(_look_at_rows, recipe, which, tokenizer))
        if which != "train" and attempt(functools.partial(is_trained_on, recipe, which)):
            found.notes.append(f"data.{which}: the very rows that are trained on, so it says nothing of other rows")
    attempt(lambda: check_metric(recipe))
    if recipe.evaluate.folds and rows.get("train") is not None:
        attempt(lambda: deal(recipe))
    return labels or (), rows


def _look_at_rows(recipe: Recipe, which: Split, tokenizer: Any) -> dict[str, int]:
    """Counts over the first rows of a source; all others are encoded too where the base may lack a vector for a token.

    Raises DataError.
    """
    from edgetune.data.encode import may_exceed
    from edgetune.data.prepare import examples, no_rows

    task, stream = TASKS[recipe.model.task], examples(recipe, which)
    first = list(itertools.islice(stream, CHECKED_ROWS))
    if not first:
        raise no_rows(recipe, which)
    if tokenizer is None:
        return {"rows": len(first)}
    counts = task.count(recipe, which, first, tokenizer)
    if may_exceed(tokenizer):
        while batch := list(itertools.islice(stream, CHECKED_ROWS)):
            task.encode(recipe, batch, tokenizer)
    return {"rows": len(first), **counts}


def check_folder(run_dir: RunDir, *, needed_bytes: int) -> None:
    """Raises RunError if a run could not be written into the folder, or the disk has no room for it."""
    there = next(path for path in (run_dir.path, *run_dir.path.absolute().parents) if path.exists())
    if not there.is_dir():
        raise RunError(f"{there}: is a file, and a run needs a folder", cure="choose another folder with --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{there}: cannot be written", cure="choose another folder with --out")
    free = shutil.disk_usage(there).free
    more = needed_bytes - sum(file.stat().st_size for file in run_dir.path.rglob("*") if file.is_file())
    if more > free:
        raise RunError(
            f"{run_dir.path}: a run will write about {more / 1024**2:,.0f} MiB, {free / 1024**2:,.0f} MiB are free",
            cure="free some space or choose another folder with --out",
        )
