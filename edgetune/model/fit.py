"""Make a recipe fit a memory budget: "auto" in [train] decided, and the least painful changes where that is not enough.

A change is kept only if the recipe does not fit without it. The effective batch, and with it the loss, stays what it
was until, last of all, sequences get shorter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgetune.errors import OutOfMemoryError
from edgetune.recipe import Recipe, problem_with

LEAST_SEQUENCE = 64
"""Tokens below which a sequence is not cut to make a recipe fit."""
Peak = Callable[[Recipe], int]
"""Peak memory in bytes that a recipe needs: its training, or its whole run."""


@dataclass(frozen=True)
class Change:
    """Keys that were changed, e.g. {"train.batch_size": 2}, what that costs, and the peak in bytes with it."""

    values: dict[str, Any]
    cost: str
    peak_bytes: int


def fit(recipe: Recipe, allowed_bytes: int, peak: Peak, *, is_gpu: bool) -> tuple[Recipe, list[Change]]:
    """The recipe with as few changes as it needs to stay within `allowed_bytes`, and these changes in order.

    None if it fits as it is. Raises OutOfMemoryError if no change helps enough.
    """
    applied: list[tuple[dict[str, Any], str]] = []
    fitting = recipe
    for values, cost in _changes(recipe, is_gpu=is_gpu):
        if peak(fitting) <= allowed_bytes:
            break
        changed = with_values(fitting, values)
        if peak(changed) < peak(fitting):
            fitting = changed
            applied.append((values, cost))
    if peak(fitting) > allowed_bytes:
        raise OutOfMemoryError(
            f"{recipe.name}: needs about {peak(fitting) / 1024**2:,.0f} MiB even with the smallest settings,"
            f" {allowed_bytes / 1024**2:,.0f} MiB are allowed",
            cure="choose a smaller base, or a larger budget",
        )
    needed = _needed(recipe, applied, allowed_bytes, peak)
    return _apply(recipe, needed), _describe(recipe, needed, peak)


def settle(recipe: Recipe, allowed_bytes: int, peak: Peak, *, is_gpu: bool) -> Recipe:
    """The recipe with a value for each "auto" among batch_size and gradient_checkpointing: the fastest that fits.

    A step has as many sequences as with the default micro-batch. The micro-batch is the largest part of a step that
    fits (on a CPU, where more win nothing, the default's at most); layers are checkpointed only where not even one
    sequence fits without. Where nothing fits: the smallest.
    """
    table, default = recipe.train, recipe.batch_size
    if "auto" not in (table.batch_size, table.gradient_checkpointing):
        return recipe
    rows, settled = default * table.gradient_accumulation_steps, recipe
    most = rows if is_gpu else default
    sizes = [size for size in range(most, 0, -1) if rows % size == 0] if table.batch_size == "auto" else [default]
    choices = (True,) if table.offload_activations else (False, True)
    for is_checkpointed in choices if table.gradient_checkpointing == "auto" else (table.gradient_checkpointing,):
        for size in sizes:
            values = {
                "train.batch_size": size,
                "train.gradient_accumulation_steps": rows // size,
                "train.gradient_checkpointing": is_checkpointed,
            }
            settled = with_values(recipe, values)
            if peak(settled) <= allowed_bytes:
                return settled
    return settled


def with_values(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with values for keys like "train.batch_size"."""
    for name, value in values.items():
        table, _, key = name.partition(".")
        recipe = dataclasses.replace(recipe, **{table: dataclasses.replace(getattr(recipe, table), **{key: value})})
    return recipe


def _changes(recipe: Recipe, *, is_gpu: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """Every change that could help, the least painful first; each adds to those before it."""
    train = recipe.train
    if not train.fused_loss:
        yield {"train.fused_loss": True}, "nothing: the same loss"
    rows = recipe.batch_size * train.gradient_accumulation_steps
    for size in range(recipe.batch_size - 1, 0, -1):
        if recipe.batch_size % size == 0:
            values = {"train.batch_size": size, "train.gradient_accumulation_steps": rows // size}
            yield values, "smaller products, slower on a GPU; as many sequences a step as before"
    if not recipe.gradient_checkpointing:
        yield {"train.gradient_checkpointing": True}, "about a third more time a step"
    if not train.optimizer.endswith("8bit"):
        yield {"train.optimizer": f"{train.optimizer}_8bit"}, "the optimizer's state is rounded to 8 bits"
    if is_gpu and not train.offload_activations:
        yield {"train.offload_activations": True}, "traffic between GPU and host memory"
    if recipe.model.quantization == "none":
        yield {"model.quantization": "nf4"}, "the base is rounded to 4 bits, and slower to train on"
    for kind, bits in (("int8", 8), ("nf4", 4)):
        change = {"model.embedding_quantization": kind}
        is_new = recipe.model.embedding_quantization not in (kind, "nf4")
        if is_new and problem_with(with_values(recipe, change)) is None:
            yield change, f"embedding and head are rounded to {bits} bits; half more time in the loss"
    if recipe.export.repair_steps and not recipe.is_idle("export.repair_steps"):
        yield {"export.repair_steps": 0}, "no repair: the bundle is further from the fine-tune"
    length = recipe.data.max_seq_len
    while length // 2 >= LEAST_SEQUENCE:
        length //= 2
        yield {"data.max_seq_len": length}, f"rows of more than {length} tokens go data.too_long's way"


def _needed(
    recipe: Recipe, applied: list[tuple[dict[str, Any], str]], allowed_bytes: int, peak: Peak
) -> list[tuple[dict[str, Any], str]]:
    """The changes without those that others made needless, the most painful left out first; free ones stay."""
    kept = list(applied)
    for change in reversed(applied):
        if "train.fused_loss" in change[0]:
            continue
        without = [item for item in kept if item is not change]
        if peak(_apply(recipe, without)) <= allowed_bytes:
            kept = without
    return kept


def _apply(recipe: Recipe, changes: list[tuple[dict[str, Any], str]]) -> Recipe:
    for values, _ in changes:
        recipe = with_values(recipe, values)
    return recipe


def _describe(recipe: Recipe, changes: list[tuple[dict[str, Any], str]], peak: Peak) -> list[Change]:
    """The changes with the peak after each; of several for one key only the last."""
    last = {tuple(values): number for number, (values, _) in enumerate(changes)}
    kept = [change for number, change in enumerate(changes) if last[tuple(change[0])] == number]
    return [
        Change(values, cost, peak(_apply(recipe, kept[: number + 1]))) for number, (values, cost) in enumerate(kept)
    ]
