"""What "auto" in [train] becomes on this machine, from the planner: part of setting a training up."""

from __future__ import annotations

from functools import partial
from typing import Any

from edgetune.data.prepare import Prepared
from edgetune.model.device import device
from edgetune.model.fit import settle, with_values
from edgetune.model.memory import estimate, room_bytes
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir
from edgetune.train import checkpoint

SETTLED = ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing")
"""Keys of [train] that have a value afterwards."""


def settled(recipe: Recipe, prepared: Prepared[Any], run_dir: RunDir) -> Recipe:
    """The recipe with a value for each "auto" that memory decides; a run that goes on keeps what it began with.

    Raises ModelError.
    """
    if "auto" not in (recipe.train.batch_size, recipe.train.gradient_checkpointing):
        return recipe
    if checkpoint.find(run_dir):
        before = load_recipe(run_dir.recipe).train
        return with_values(recipe, {f"train.{key}": getattr(before, key) for key in SETTLED})
    kind, report = device().type, prepared.report
    peak = partial(
        estimate,
        on=kind,
        trained_share=report.trained_tokens / max(1, report.tokens),
        labels=report.labels,
        sample_tokens=min(report.longest, recipe.data.max_seq_len),
    )
    return settle(recipe, room_bytes(recipe.budget, kind), lambda asked: peak(asked).peak_bytes, is_gpu=kind == "cuda")
