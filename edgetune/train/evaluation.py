"""The evaluations of a training, and what is told of its steps.

In the flow: the model after a step -> eval loss over all processes -> the kept adapter, early stopping, and what
watch.py makes of it; each measurement goes to events.jsonl, the trackers and the progress callback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from edgetune.model.memory import give_back_memory, is_out_of_memory, peak_memory_bytes
from edgetune.progress import Progress
from edgetune.run_dir import RunDir
from edgetune.train import events, processes
from edgetune.train.divergence import Diverged
from edgetune.train.setup import Parts
from edgetune.train.state import State
from edgetune.train.watch import follow_plateau, watch_for_divergence, watch_for_overfitting

MOST_EVAL_PIECES = 256
"""More rows than that are in no batch of an evaluation."""


def evaluate(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
    """Eval loss after a step; keeps the adapter if it is the best so far, and counts towards early stopping."""
    train_loss, state.train_loss_tokens = state.train_loss, 0
    loss = _eval_loss(parts, state, notify, parts.eval_sample)
    if loss is None:
        _keep_adapter(parts, run_dir)
        return
    state.eval_loss = loss
    if not math.isfinite(state.eval_loss):
        raise Diverged(state.step, f"the eval loss is {state.eval_loss}")
    event = {"step": state.step, "eval_loss": state.eval_loss, "train_loss": train_loss}
    report(parts, run_dir, state, event, notify)
    if state.best_loss is None or state.eval_loss < state.best_loss:
        state.best_loss, state.best_step, state.evaluations_since_best = state.eval_loss, state.step, 0
        _keep_adapter(parts, run_dir)
    else:
        state.evaluations_since_best += 1
        patience = parts.recipe.train.early_stopping_patience
        state.is_over = patience is not None and state.evaluations_since_best >= patience
    if parts.eval_sample is not None and state.best_step == state.step == parts.steps:
        state.whole_loss = _eval_loss(parts, state, notify, None)
        report(parts, run_dir, state, {"step": state.step, "whole_eval_loss": state.whole_loss}, notify)
    watch_for_divergence(state, train_loss)
    watch_for_overfitting(parts, run_dir, state, train_loss, notify)
    follow_plateau(parts, run_dir, state, notify)


def _eval_loss(parts: Parts, state: State, notify: Progress, rows: Any) -> float | None:
    """Mean loss over the eval rows, or over `rows` of them, by all processes; None where there are none."""
    sums = processes.gathered(_eval_sums(parts, state, notify, rows))
    total, count = (sum(numbers) for numbers in zip(*sums, strict=True))
    return total / count if count else None


def _eval_sums(parts: Parts, state: State, notify: Progress, rows: Any) -> tuple[float, int]:
    """Summed loss of this process's part of the rows, and what it sums over; in smaller batches where it must."""
    part = slice(processes.rank(), None, processes.count())
    while True:
        try:
            return parts.task.evaluate(parts.model, part, pieces=state.eval_pieces, rows=rows)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or state.eval_pieces >= MOST_EVAL_PIECES:
                raise
        state.eval_pieces *= 2  # only here, without the exception, what the evaluation held is free
        give_back_memory()
        text = f"step {state.step}: out of memory in the evaluation; goes on with smaller batches of it"
        notify({"stage": events.STAGE, "message": text})


def _keep_adapter(parts: Parts, run_dir: RunDir) -> None:
    if parts.is_main:
        parts.task.save(parts.model, run_dir.adapter)


def report(parts: Parts, run_dir: RunDir, state: State, event: Mapping[str, Any], notify: Progress) -> None:
    """An event to events.jsonl, to the trackers, and with memory and time left to the progress callback."""
    if not parts.is_main:
        return
    event = {**event, "memory_bytes": peak_memory_bytes()}
    run_dir.append_event({"stage": events.STAGE, **event})
    if parts.recipe.train.trackers:
        parts.accelerator.log({key: value for key, value in event.items() if key != "step"}, step=state.step)
    steps_left = parts.steps - state.step
    spent_s = max(state.wall_s, state.train_s)
    notify(
        {
            "stage": events.STAGE,
            "steps": parts.steps,
            "loss": state.train_loss,
            "eval_loss": state.eval_loss,
            "tokens": state.tokens,
            "left_s": spent_s / state.step * steps_left,
            **event,
        }
    )
