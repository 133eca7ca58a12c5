"""`edgetune plan`: check a recipe against the real files and estimate its memory. No weights are loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import json_option, recipe_argument, set_option

if TYPE_CHECKING:
    from pathlib import Path

    from edgetune.model.memory import Estimate
    from edgetune.recipe import Recipe

CHECKED_ROWS = 200
"""Rows of each source that are read, rendered and tokenised."""


@click.command("plan", epilog="Example: edgetune plan recipes/quickstart.toml --set train.batch_size=8")
@recipe_argument
@set_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE against the real files and estimate the peak memory of its training.

    Reads config, headers, tokenizer and the first rows; loads no weights. Exits 4 if [budget] memory is too small.
    """
    from edgetune.errors import OutOfMemoryError
    from edgetune.model.memory import estimate
    from edgetune.recipe import load_recipe, parse_size

    checked = load_recipe(recipe, overrides)
    rows = _check(checked)
    planned = estimate(checked, trained_share=_trained_share(rows))
    allowed = parse_size(checked.budget.memory)
    if as_json:
        console.say_json(_document(checked, planned, rows, allowed))
    else:
        console.say(_table(checked, planned, rows))
    if allowed is not None and planned.peak_bytes > allowed:
        raise OutOfMemoryError(
            f"{recipe}: training needs about {_mib(planned.peak_bytes)} MiB, budget.memory is {checked.budget.memory}",
            cure="lower train.batch_size or data.max_seq_len, set train.gradient_checkpointing, or raise the budget",
        )


def _check(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the first rows of each source are. Raises RecipeError with all problems, or the only one there is."""
    from edgetune.errors import EdgeTuneError, RecipeError
    from edgetune.model.base import check_base, load_tokenizer, resolve_base

    problems: list[EdgeTuneError] = []

    def attempt(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except EdgeTuneError as error:
            problems.append(error)
            return None

    model = recipe.model
    base = attempt(lambda: resolve_base(model.base, model.revision, trust_remote_code=model.trust_remote_code))
    tokenizer = None
    if base is not None:
        attempt(lambda: check_base(base, trust_remote_code=model.trust_remote_code))
        tokenizer = attempt(lambda: load_tokenizer(base, trust_remote_code=model.trust_remote_code))
        if recipe.lora.init_from is not None:
            attempt(lambda: _check_adapter(recipe, base))
    rows = {}
    for which in ("train", "eval", "test"):
        if which == "train" or getattr(recipe.data, which) is not None:
            rows[which] = attempt(functools.partial(_look_at_rows, recipe, which, tokenizer))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [str(problem) for problem in problems]
        raise RecipeError("\n".join([f"{len(lines)} problems", *lines]), problems=lines)
    return rows


def _check_adapter(recipe: Recipe, base: Path) -> None:
    from pathlib import Path

    from edgetune.lora.adapter import check_adapter

    check_adapter(Path(str(recipe.lora.init_from)).expanduser(), base)


def _look_at_rows(recipe: Recipe, which: Any, tokenizer: Any) -> dict[str, Any]:
    """Counts over the first rows of a source: rows, tokens, trained tokens, rows that are too long."""
    import itertools

    from edgetune.data.chat import ensure_chat_template
    from edgetune.data.encode import encode_batch
    from edgetune.data.prepare import examples
    from edgetune.errors import DataError

    first = list(itertools.islice(examples(recipe, which), CHECKED_ROWS))
    if not first:
        raise DataError(f"data.{which}: holds no rows")
    if tokenizer is None:
        return {"rows": len(first)}
    ensure_chat_template(tokenizer)
    encoded = encode_batch(first, tokenizer, loss_on=recipe.data.loss_on)
    return {
        "rows": len(first),
        "tokens": sum(len(row.input_ids) for row in encoded),
        "trained_tokens": sum(label != -100 for row in encoded for label in row.labels),
        "too_long": sum(len(row.input_ids) > recipe.data.max_seq_len for row in encoded),
    }


def _trained_share(rows: dict[str, dict[str, Any]]) -> float:
    train = rows["train"]
    return train["trained_tokens"] / max(1, train["tokens"])


def _document(recipe: Recipe, planned: Estimate, rows: dict[str, Any], allowed: int | None) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "base_parameters": planned.base_parameters,
        "trainable_parameters": planned.trainable_parameters,
        "parts_bytes": planned.parts,
        "peak_bytes": planned.peak_bytes,
        "budget_bytes": allowed,
        "fits": allowed is None or planned.peak_bytes <= allowed,
        "first_rows": rows,
    }


def _table(recipe: Recipe, planned: Estimate, rows: dict[str, Any]) -> str:
    lines = [
        f"{recipe.name}: {recipe.model.base}, {planned.base_parameters:,} parameters,"
        f" {planned.trainable_parameters:,} to train"
    ]
    for which, counts in rows.items():
        lines.append(
            f"data.{which}: first {counts['rows']} rows read, {counts['tokens']:,} tokens, of which"
            f" {counts['trained_tokens']:,} are trained; {counts['too_long']} rows longer than max_seq_len"
        )
    lines += ["", "estimated peak of training                 MiB"]
    lines += [f"  {name:<36} {_mib(size):>8}" for name, size in planned.parts.items() if size]
    lines.append(f"  {'total':<36} {_mib(planned.peak_bytes):>8}")
    if recipe.budget.memory is not None:
        lines.append(f"  {'budget.memory':<36} {recipe.budget.memory:>8}")
    return "\n".join(lines)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.1f}"
