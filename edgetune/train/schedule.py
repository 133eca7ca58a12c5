"""How long a training is, and its learning rate: what "auto" is, and what it is at each step.

Pure functions of numbers, so nothing to save.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from edgetune.model.base import ENCODERS
from edgetune.recipe import Recipe, TrainTable, value_after

Schedule = Literal["constant", "linear", "cosine", "plateau"]


def optimizer_steps(recipe: Recipe, epoch_rows: int) -> tuple[int, int]:
    """Optimizer steps of an epoch of so many rows, and of the whole run.

    max_steps are made whatever `epochs` says: the rows are gone through again as often as they last for, or not whole.
    """
    an_epoch = max(1, math.ceil(epoch_rows / (recipe.batch_size * recipe.train.gradient_accumulation_steps)))
    table = recipe.train
    return an_epoch, table.max_steps if table.max_steps is not None else max(1, round(table.epochs * an_epoch))


def auto_learning_rate(config: Any) -> float:
    """5e-4 * (2000 / hidden_size) ** p, p = 0.0775 for Qwen and 0.781 for all others, which are nearer to Llama.

    `config` is the base's transformers configuration. Source: the fit of Thinking Machines' Tinker cookbook over LoRA
    runs on Llama and Qwen, "LoRA Without Regret" (2025). Encoders: 1e-3 at a hidden size of 384, the same power.
    """
    if config.model_type in ENCODERS:
        return float(f"{1e-3 * (384 / config.hidden_size) ** 0.781:.3g}")
    power = 0.0775 if "qwen" in config.model_type else 0.781
    return float(f"{5e-4 * (2000 / config.get_text_config().hidden_size) ** power:.3g}")


def scheduled_rate(table: TrainTable, peak: float, step: int, *, steps: int) -> float:
    """The learning rate of optimizer step `step` (1..steps) as [train] has it: where its schedule is at 1 it is `peak`,
    or what train.changes have made of that.
    """
    return value_after(table.changes, "train.learning_rate", step - 1, peak) * learning_rate_share(
        step, steps, schedule=table.schedule, warmup_ratio=table.warmup_ratio, least=table.min_learning_rate_ratio
    )


def learning_rate_share(step: int, steps: int, *, schedule: Schedule, warmup_ratio: float, least: float) -> float:
    """Share of the learning rate with which optimizer step `step` (1..steps) is made, in (0, 1].

    Linear warm-up over the first warmup_ratio of the steps; then constant, or from 1 to `least` at the last step in a
    straight line or along half a cosine. What "plateau" cuts follows from the eval loss: plateau.py has it.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step <= warmup:
        return step / warmup
    if schedule in ("constant", "plateau"):
        return 1.0
    done = (step - warmup) / max(steps - warmup, 1)
    remaining = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return least + (1.0 - least) * remaining
