"""Recipes that differ in a few keys, so that their adapters can be trained side by side: what --vary asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from edgetune.errors import RecipeError
from edgetune.recipe import Recipe, load_recipe

VARIED = (
    "train.learning_rate",
    "train.weight_decay",
    "train.schedule",
    "train.warmup_ratio",
    "train.min_learning_rate_ratio",
    "train.max_grad_norm",
    "lora.r",
    "lora.alpha",
    "lora.dropout",
    "lora.use_rslora",
)
"""Keys in which adapters side by side may differ: none of them changes the rows or the base."""
MOST_ADAPTERS = 32


def read_variants(recipe: Path, overrides: Sequence[str], varied: Sequence[str]) -> dict[str, Recipe]:
    """The recipes that "key=value,value" texts ask for, every combination, by names made of the values.

    Raises RecipeError: a key that is none of VARIED, no values, too many combinations, a value that cannot stand.
    """
    options: dict[str, list[str]] = {}
    for text in varied:
        key, _, values = text.partition("=")
        key = key.strip().replace("-", "_")
        if key not in VARIED:
            raise RecipeError(f"--vary {key}: adapters side by side differ in {', '.join(VARIED)}", cure="take one")
        found = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
        if not found or key in options:
            what = "is given twice" if key in options else "has no values"
            raise RecipeError(f"--vary {key}: {what}", cure=f"write it as {key}=FIRST,SECOND")
        options[key] = found
    count = math.prod(map(len, options.values()))
    if count > MOST_ADAPTERS:
        raise RecipeError(f"--vary: {count} adapters are too many at once", cure=f"leave at most {MOST_ADAPTERS}")
    variants = {}
    for combination in product(*options.values()):
        chosen = dict(zip(options, combination, strict=True))
        name = "_".join(f"{key.partition('.')[2]}={value}" for key, value in chosen.items())
        variants[name] = load_recipe(recipe, (*overrides, *(f"{key}={value}" for key, value in chosen.items())))
    return variants


def check_side_by_side(recipe: Recipe) -> None:
    """Raises RecipeError for what has no place beside other adapters."""
    table = recipe.train
    alone = {
        "model.task": recipe.model.task != "generation",
        "lora.use_dora": recipe.lora.use_dora,
        "lora.train_embeddings": recipe.lora.train_embeddings,
        "lora.init_from": recipe.lora.init_from is not None,
        "train.gradient_checkpointing": table.gradient_checkpointing is not False,
        "train.batch_size": table.batch_size == "auto",
        "train.schedule": table.schedule == "plateau",
        "train.early_stopping_patience": table.early_stopping_patience is not None,
        "train.use_liger_kernel": table.use_liger_kernel,
        "train.on_overfitting": table.on_overfitting != "warn",
        "train.changes": table.changes is not None,
        "train.trackers": bool(table.trackers),
        "model.compute_dtype": recipe.model.compute_dtype == "float16",
        "evaluate.folds": recipe.evaluate.folds is not None,
    }
    for key, is_set in alone.items():
        if is_set:
            value = getattr(getattr(recipe, key.split(".")[0]), key.split(".")[1])
            raise RecipeError(
                f"{recipe.name}: {key} = {value!r} has no place side by side", cure="train these adapters one by one"
            )
