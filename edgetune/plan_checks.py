"""What a plan holds a recipe against: base, adapter, rows, metric and machine. All that would stop a later stage.

In the flow: the first half of plan.py. Reads config.json, headers, tokenizer and rows; loads no weights.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.errors import DataError, EdgeTuneError, RecipeError, RunError
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

if TYPE_CHECKING:
    from edgetune.data.formats import Example
    from edgetune.data.read import Split

CHECKED_ROWS = 200
"""Rows of each source that are read, rendered and tokenised."""
RENDERED_ROWS = 8
"""Of these, conversations whose prompt is rendered as on the device too."""
SCORED_ROWS = 2000
"""Of the rows that will be scored, how many are encoded where nothing but a plan is asked for."""


@dataclass
class Findings:
    """What stands in a recipe's way, each problem once, and what its owner may not expect."""

    problems: list[EdgeTuneError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, work: Callable[[], Any]) -> Any:
        """What the work gives; None where it raised what is now among the problems."""
        try:
            return work()
        except EdgeTuneError as error:
            if str(error) not in map(str, self.problems):
                self.problems.append(error)
            return None

    def holds(self, work: Callable[[], Any]) -> bool:
        """Whether the work raised nothing."""
        return self.attempt(lambda: (work(),)) is not None

    def raise_any(self) -> None:
        """Raises RecipeError with all problems, or the only one as it is."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            lines = [str(problem) for problem in self.problems]
            raise RecipeError("\n".join([f"{len(lines)} problems", *lines]), problems=lines)


@dataclass(frozen=True)
class Checked:
    """A recipe that can be run."""

    rows: dict[str, dict[str, int]]
    """Counts over the first rows of each source."""
    labels: int
    """Of a classifier's training rows."""
    notes: tuple[str, ...]


def check_recipe(recipe: Recipe, *, on: str, scored_rows: int | None) -> Checked:
    """Hold a recipe, planned for a "cpu" or "cuda" device, against all that it names; of the rows that will be scored
    so many are encoded, None: all.

    Raises RecipeError with all problems, or the only one as it is.
    """
    found = Findings()
    base, tokenizer = _check_base(recipe, found)
    _check_machine(recipe, base, found, on=on)
    labels, rows = _check_rows(recipe, tokenizer, found)
    if base is not None and tokenizer is not None and rows and None not in rows.values():
        _check_use(recipe, base, tokenizer, labels, found, scored_rows=scored_rows)
    found.raise_any()
    return Checked(rows, len(labels), tuple(found.notes))


def _check_base(recipe: Recipe, found: Findings) -> tuple[Path | None, Any]:
    """The base's folder and tokenizer, as far as they can be had, once the recipe's adapter fits them."""
    from edgetune.export.architecture import check_architecture
    from edgetune.export.encoder import check_libraries
    from edgetune.lora.adapter import check_adapter, check_targets
    from edgetune.model.base import check_base, check_shapes, load_tokenizer, resolve_base
    from edgetune.model.classifier import check_pooling
    from edgetune.quantize.matrices import check_int8_layers
    from edgetune.verify.lengths import check_computable

    table, attempt, is_trusted = recipe.model, found.attempt, recipe.model.trust_remote_code
    base = attempt(lambda: resolve_base(table.base, table.revision, trust_remote_code=is_trusted))
    if base is None:
        return None, None
    is_sound = attempt(lambda: check_base(base, trust_remote_code=is_trusted, task=table.task))
    if is_sound and not recipe.is_classifier:
        is_sound = found.holds(lambda: check_architecture(base)) and found.holds(
            lambda: check_computable(base, max_length=recipe.export.max_length)
        )
    if adapter := recipe.lora.init_from:
        attempt(lambda: check_adapter(Path(adapter).expanduser(), base, table))
    if not is_sound:  # whatever else is wrong follows from that
        return base, None
    if found.holds(lambda: check_shapes(base)):
        attempt(lambda: check_int8_layers(base, recipe))
        attempt(lambda: found.notes.extend(check_targets(base, recipe)))
    if recipe.is_classifier:
        attempt(check_libraries)
        attempt(lambda: check_pooling(base, recipe.classify.pooling))
    return base, attempt(lambda: load_tokenizer(base, trust_remote_code=is_trusted))


def _check_machine(recipe: Recipe, base: Path | None, found: Findings, *, on: str) -> None:
    """Packages, and what this machine's device can do where it is the one that is planned for."""
    from edgetune.model.base import read_config
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
    from edgetune.data.prepare import check_labels
    from edgetune.data.splits import has_own_rows, is_trained_on
    from edgetune.evaluate.rows import check_metric

    attempt, rows = found.attempt, dict[str, dict[str, int]]()
    labels = (attempt(lambda: check_labels(recipe)) or ()) if recipe.is_classifier else ()
    splits: tuple[Split, ...] = ("train", "eval", "test")
    for which in splits if labels or not recipe.is_classifier else ():
        if not attempt(functools.partial(has_own_rows, recipe, which)):
            continue
        rows[which] = attempt(functools.partial(_look_at_rows, recipe, which, tokenizer))
        if which != "train" and attempt(functools.partial(is_trained_on, recipe, which)):
            found.notes.append(f"data.{which}: the very rows that are trained on, so it says nothing of other rows")
    if not recipe.is_classifier:
        attempt(lambda: check_metric(recipe))
    if recipe.evaluate.folds and rows.get("train") is not None:
        attempt(lambda: deal(recipe))
    return labels, rows


def _check_use(
    recipe: Recipe, base: Path, tokenizer: Any, labels: Sequence[str], found: Findings, *, scored_rows: int | None
) -> None:
    """Whether some of the rows can be trained on, and what is to be scored can."""
    from edgetune.data.generation import left_out
    from edgetune.data.prepare import longest_row, require_usable
    from edgetune.evaluate.label_rows import make_label_set
    from edgetune.evaluate.rows import check_scored_rows
    from edgetune.model.base import context_length, read_config

    if not recipe.is_classifier:
        found.attempt(lambda: found.notes.extend(_look_at_chat(recipe, base, tokenizer)))
        if columns := found.attempt(lambda: left_out(recipe)):
            found.notes.append(f"data.train: columns left out: {', '.join(columns)}")
        longest = context_length(read_config(base), recipe.export)
        if found.holds(lambda: require_usable(recipe, tokenizer)):
            found.attempt(lambda: check_scored_rows(recipe, tokenizer, context_length=longest, most=scored_rows))
    elif labels:
        longest = longest_row(recipe, base, tokenizer)
        found.attempt(lambda: require_usable(recipe, tokenizer, labels=tuple(labels), max_length=longest))
        found.attempt(lambda: make_label_set(recipe, labels))


def _look_at_chat(recipe: Recipe, base: Path, tokenizer: Any) -> list[str]:
    """What a user may not expect of how a decoder's rows are rendered and answers end.

    Raises DataError or ModelError if nothing ends an answer, or the device would render a prompt otherwise.
    """
    from edgetune.data.chat import chat_notes, check_device_text, end_ids
    from edgetune.data.prepare import examples

    first = list(itertools.islice(examples(recipe, "train"), CHECKED_ROWS))
    chats = [example for example in first if example.messages]
    end_ids(tokenizer, base, is_chat=bool(chats))
    for example in chats[:RENDERED_ROWS]:
        check_device_text(tokenizer, example)
    return [f"data.train: {note}" for note in chat_notes(tokenizer, chats)] if chats else []


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


def _look_at_rows(recipe: Recipe, which: Any, tokenizer: Any) -> dict[str, int]:
    """Counts over the first rows of a source: rows, tokens, trained tokens or labels, rows that are too long."""
    from edgetune.data.chat import ensure_chat_template
    from edgetune.data.encode import encode_batch, may_exceed
    from edgetune.data.generation import says_nothing
    from edgetune.data.kinds import require_each_kind
    from edgetune.data.prepare import examples, no_rows

    stream = examples(recipe, which)
    first = list(itertools.islice(stream, CHECKED_ROWS))
    if not first:
        raise no_rows(recipe, which)
    if tokenizer is None:
        return {"rows": len(first)}
    if recipe.is_classifier:
        lengths = [len(ids) for ids in _known_tokens(first, tokenizer)]
        if may_exceed(tokenizer):
            while batch := list(itertools.islice(stream, CHECKED_ROWS)):
                _known_tokens(batch, tokenizer)
        too_long = sum(length > recipe.data.max_seq_len for length in lengths)
        labels = len({label for example in first for label in example.labels})
        return {"rows": len(first), "tokens": sum(lengths), "labels": labels, "too_long": too_long}
    if which == "test" and len(first) < CHECKED_ROWS and all(says_nothing(row, recipe.data) for row in first):
        raise DataError("data.test: no row has anything to learn", cure="fill the answers, or set data.loss_on")
    ensure_chat_template(tokenizer)
    encoded = encode_batch(first, tokenizer, loss_on=recipe.data.loss_on)
    if which != "test":  # of these only what is scored is rendered
        require_each_kind(recipe, which, tokenizer)
    if may_exceed(tokenizer):
        while batch := list(itertools.islice(stream, CHECKED_ROWS)):
            encode_batch(batch, tokenizer, loss_on=recipe.data.loss_on)
    return {
        "rows": len(first),
        "tokens": sum(len(row.input_ids) for row in encoded),
        "trained_tokens": sum(row.trained_tokens for row in encoded),
        "longest": max(len(row.input_ids) for row in encoded),
        "too_long": sum(len(row.input_ids) > recipe.data.max_seq_len for row in encoded),
    }


def _known_tokens(examples: Sequence[Example], tokenizer: Any) -> list[list[int]]:
    """The ids of a classifier's texts. Raises DataError for a token that the base has no vector for."""
    from edgetune.data.encode import check_tokens

    texts: list[list[int]] = tokenizer([example.text or "" for example in examples], verbose=False)["input_ids"]
    for example, ids in zip(examples, texts, strict=True):
        check_tokens(ids, tokenizer, example.place)
    return texts
