"""The plan stage: a recipe held against the real files, all problems at once, and what its training will need.

Reads config.json, headers, tokenizer and the first rows; loads no weights. `edgetune plan` shows it,
`edgetune run` begins with it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.errors import DataError, EdgeTuneError, OutOfMemoryError, RecipeError
from edgetune.recipe import Recipe, parse_size

if TYPE_CHECKING:
    from edgetune.model.memory import Estimate

CHECKED_ROWS = 200
"""Rows of each source that are read, rendered and tokenised."""


@dataclass(frozen=True)
class Plan:
    """A recipe that can be run: its estimate, and counts over the first rows of each source."""

    estimate: Estimate
    rows: Mapping[str, Mapping[str, int]]
    allowed_bytes: int | None
    """[budget] memory."""

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the budget."""
        return self.allowed_bytes is None or self.estimate.peak_bytes <= self.allowed_bytes


def plan(recipe: Recipe) -> Plan:
    """Check base, architecture, adapter and rows, then estimate.

    Raises RecipeError with all problems, or the only one as it is.
    """
    from edgetune.model.memory import estimate

    rows, labels = _check(recipe)
    share = rows["train"].get("trained_tokens", 0) / max(1, rows["train"]["tokens"])
    needs = estimate(recipe, trained_share=share, labels=labels)
    return Plan(needs, rows, parse_size(recipe.budget.memory))


def refuse_over_budget(recipe: Recipe, planned: Plan) -> None:
    """Raises OutOfMemoryError if training needs more than [budget] memory."""
    if not planned.fits:
        raise OutOfMemoryError(
            f"{recipe.name}: training needs about {planned.estimate.peak_bytes / 1024**2:,.1f} MiB, budget.memory is"
            f" {recipe.budget.memory}",
            cure="lower train.batch_size or data.max_seq_len, set train.gradient_checkpointing, or raise the budget",
        )


def _check(recipe: Recipe) -> tuple[dict[str, dict[str, int]], int]:
    """What the first rows of each source are, and how many labels a classifier's training rows have.

    Raises RecipeError with all problems, or the only one there is.
    """
    from edgetune.data.labelled import check_labels
    from edgetune.export.architecture import check_architecture
    from edgetune.export.encoder import check_libraries
    from edgetune.lora.adapter import check_adapter
    from edgetune.model.base import check_base, load_tokenizer, resolve_base
    from edgetune.model.classifier import check_pooling

    problems: list[EdgeTuneError] = []

    def attempt(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except EdgeTuneError as error:
            if str(error) not in map(str, problems):
                problems.append(error)
            return None

    model, adapter = recipe.model, recipe.lora.init_from
    base = attempt(lambda: resolve_base(model.base, model.revision, trust_remote_code=model.trust_remote_code))
    tokenizer = None
    if base is not None:
        is_sound = attempt(lambda: check_base(base, trust_remote_code=model.trust_remote_code, task=model.task))
        if is_sound:  # before the training, not after it
            attempt(check_libraries if recipe.is_classifier else lambda: check_architecture(base))
            if recipe.is_classifier:
                attempt(lambda: check_pooling(base, recipe.classify.pooling))
        tokenizer = attempt(lambda: load_tokenizer(base, trust_remote_code=model.trust_remote_code))
        if adapter is not None:
            attempt(lambda: check_adapter(Path(adapter).expanduser(), base))
    labels = (attempt(lambda: check_labels(recipe)) or ()) if recipe.is_classifier else ()
    rows = {}
    for which in ("train", "eval", "test"):
        if which == "train" or getattr(recipe.data, which) is not None:
            rows[which] = attempt(functools.partial(_look_at_rows, recipe, which, tokenizer))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [str(problem) for problem in problems]
        raise RecipeError("\n".join([f"{len(lines)} problems", *lines]), problems=lines)
    return rows, len(labels)


def _look_at_rows(recipe: Recipe, which: Any, tokenizer: Any) -> dict[str, int]:
    """Counts over the first rows of a source: rows, tokens, trained tokens or labels, rows that are too long."""
    from edgetune.data.chat import ensure_chat_template
    from edgetune.data.encode import encode_batch
    from edgetune.data.prepare import examples

    first = list(itertools.islice(examples(recipe, which), CHECKED_ROWS))
    if not first:
        raise DataError(f"data.{which}: holds no rows")
    if tokenizer is None:
        return {"rows": len(first)}
    if recipe.is_classifier:
        lengths = [len(tokenizer(example.text or "", verbose=False)["input_ids"]) for example in first]
        too_long = sum(length > recipe.data.max_seq_len for length in lengths)
        labels = len({label for example in first for label in example.labels})
        return {"rows": len(first), "tokens": sum(lengths), "labels": labels, "too_long": too_long}
    ensure_chat_template(tokenizer)
    encoded = encode_batch(first, tokenizer, loss_on=recipe.data.loss_on)
    return {
        "rows": len(first),
        "tokens": sum(len(row.input_ids) for row in encoded),
        "trained_tokens": sum(row.trained_tokens for row in encoded),
        "too_long": sum(len(row.input_ids) > recipe.data.max_seq_len for row in encoded),
    }
