"""Training, whole: recipe -> runs/x/adapter/. Our own loop on Accelerate; every step of it is in this file.

In the flow: data and model give rows and an adapted base; this loop leaves adapter/ (the best by eval loss, PEFT's own
format), events.jsonl, loss.png, results/train.json, and checkpoints/ while it is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a finished training was. Losses in nats per trained token; `tokens` count what the model read, pads aside."""

    steps: int
    train_loss: float
    eval_loss: float | None
    best_step: int
    tokens: int
    trained_tokens: int
    tokens_per_s: float
    peak_bytes: int
    wall_s: float
    learning_rate: float
    stopped_early: bool


def train(recipe: Recipe, run_dir: RunDir, *, progress: Progress | None = None) -> TrainResult:
    """Train the recipe's adapter in its run folder; goes on from the newest checkpoint there, returns at once if finished.

    Raises Stopped after SIGINT or SIGTERM (a checkpoint was saved), RunError for a folder of another recipe or a full
    disk, DataError for data without a trainable token, HardwareError for an optimizer this machine cannot run.
    """
    raise RuntimeError("being written")
