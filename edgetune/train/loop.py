"""Training, whole: recipe -> runs/x/adapter/. What a step is, is in fit.py; here is what happens around it.

In the flow: data and model give rows and an adapted base; this loop leaves adapter/ (the best by eval loss, PEFT's own
format), events.jsonl, loss.png, results/train.json, and checkpoints/ while it is under way.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgetune.data.read import content_hashes, is_hub_id, splits
from edgetune.errors import OutOfMemoryError, Stopped
from edgetune.files import write_text
from edgetune.hashes import hash_tree, hash_values
from edgetune.model.base import base_folder, hash_base
from edgetune.model.heap import lean_heap
from edgetune.model.memory import give_back_memory, is_out_of_memory, peak_memory_bytes, reset_peak
from edgetune.progress import Progress, silent
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir, claim
from edgetune.train import checkpoint, events, processes
from edgetune.train.checkpoint import Memory, State
from edgetune.train.curve import draw_curve
from edgetune.train.divergence import Diverged
from edgetune.train.fit import fit
from edgetune.train.liger import liger_kernels
from edgetune.train.restart import begin_events, go_back, remember
from edgetune.train.result import TrainResult, read_result, result_of, rows_at_once, write_result
from edgetune.train.setup import Parts, set_up
from edgetune.train.stop import StopRequest, listen_for_stop
from edgetune.train.watch import (
    follow_plateau,
    hold_against_overfitting,
    note_start,
    watch_for_divergence,
    watch_for_overfitting,
)

MOST_EVAL_PIECES = 256
"""More rows than that are in no batch of an evaluation."""


def train(
    recipe: Recipe,
    run_dir: RunDir,
    *,
    base: Any = None,
    is_compared: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the recipe's adapter in its run folder; goes on from a checkpoint there, returns at once if finished.

    `base`: the recipe's base, where it is loaded already (model.lend.lent takes the adapter off it afterwards).
    `is_compared`: with other trainings, so that each evaluation is on all eval rows. `force` first empties the folder
    of an older run. Several processes, started by a launcher, all call this.

    Raises Stopped after SIGINT or SIGTERM (a checkpoint was saved), RunError for a folder of another recipe or a full
    disk, DataError for data without a trainable token, HardwareError for an optimizer this machine cannot run.
    """
    with processes.together():
        notify = progress if progress and processes.is_main() else silent
        asked = processes.main_does(lambda: _claim(recipe, run_dir, force=force))
        inputs = _hash_inputs(recipe, asked)
        processes.same_everywhere(
            inputs,
            what="another recipe, base or data",
            cure="give every machine the same files, or a disk that they share",
        )
        if finished := processes.main_does(lambda: read_result(run_dir, inputs)):
            notify({"stage": "train", "message": f"up to date: {run_dir.adapter}"})
            return finished
        reset_peak()
        try:
            result = _train(recipe, run_dir, inputs, base, notify, is_compared=is_compared)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(error) from None
        if not processes.is_main():
            give_back_memory()  # the main one goes on and may need it
        return result


def find_inputs(recipe: Recipe, run_dir: RunDir) -> str:
    """Hash of what the adapter is made from: the recipe as claimed, the base, local data, the adapter to go on from.

    Raises DataError if the data is not there.
    """
    return _hash_inputs(recipe, run_dir.read()["asked"])


def _claim(recipe: Recipe, run_dir: RunDir, *, force: bool) -> dict[str, Any]:
    """The recipe as its run folder, claimed, keeps it."""
    claim(run_dir, recipe.to_toml(), force=force)
    asked: dict[str, Any] = run_dir.read()["asked"]
    return asked


def _hash_inputs(recipe: Recipe, asked: Mapping[str, Any]) -> str:
    base = base_folder(recipe.model)
    local = [name for name in (recipe.data.train, recipe.data.eval) if name and not is_hub_id(name)]
    contents = [content_hashes(name, split) for name in local for split in splits(name) or (None,)]
    adapter = Path(recipe.lora.init_from).expanduser() if recipe.lora.init_from else None
    adapter_hash = hash_tree(adapter) if adapter and adapter.is_dir() else None
    return hash_values(asked, hash_base(base), contents, adapter_hash)


def _train(
    recipe: Recipe, run_dir: RunDir, inputs: str, base: Any, notify: Progress, *, is_compared: bool
) -> TrainResult:
    parts = set_up(recipe, run_dir, inputs, notify, base=base, is_compared=is_compared)
    processes.copy_from_main(parts.trained)
    start = remember(parts)
    found = processes.main_does(lambda: _find_checkpoint(parts, run_dir))
    if found:
        checkpoint.restore(found, parts.model, parts.optimizer, scaler=parts.scaler)
        notify({"stage": "train", "message": f"goes on after step {found.state.step} of {parts.steps}"})
    state = found.state if found else State()
    hold_against_overfitting(parts, state)
    with (
        listen_for_stop() as request,
        liger_kernels(parts.model, parts.recipe.train.use_liger_kernel),
        lean_heap(parts.recipe.gradient_checkpointing),
    ):
        state = _run_with_restarts(parts, run_dir, state, start, notify, request)
    peak_bytes = max(processes.gathered(peak_memory_bytes()))
    return processes.main_does(lambda: _finish(parts, run_dir, state, inputs, peak_bytes))


def _find_checkpoint(parts: Parts, run_dir: RunDir) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, the run folder being as it was then."""
    checkpoint.sweep(run_dir)
    write_text(run_dir.recipe, parts.recipe.to_toml())
    found = checkpoint.newest(run_dir, inputs=parts.inputs)
    checkpoint.restore_best(run_dir, found.folder if found else None)
    begin_events(run_dir, found.state if found else State())
    return found


def _run_with_restarts(
    parts: Parts, run_dir: RunDir, state: State, start: Memory | None, notify: Progress, request: StopRequest
) -> State:
    """All steps; after a divergence from the last sound place on, at a lower learning rate. The state at the end."""
    while True:
        try:
            _run_steps(parts, run_dir, state, notify, request)
            return state
        except Diverged as diverged:
            state = go_back(parts, run_dir, state, start, diverged, notify)


def _run_steps(parts: Parts, run_dir: RunDir, state: State, notify: Progress, request: StopRequest) -> None:
    """Optimizer steps until the last one, early stopping, or a signal, and all that follows each of them."""
    if state.is_over:
        return
    for made in fit(parts.training, state):
        after_s = time.perf_counter()
        step, is_last = made.number, made.number == parts.steps
        if made.was_cut:
            _report_smaller(parts, run_dir, state, notify)
        note_start(state, made.loss)
        state.tokens += made.read
        state.trained_tokens += made.trained
        state.train_loss += (made.loss - state.train_loss) * made.trained / (state.train_loss_tokens + made.trained)
        state.train_loss_tokens += made.trained
        state.train_s += made.wall_s
        speed = made.read / made.wall_s
        event = {"step": step, "loss": made.loss, "learning_rate": made.learning_rate, "tokens_per_s": speed}
        _report(parts, run_dir, state, event, notify)
        if step % parts.eval_steps == 0 or is_last:
            _evaluate(parts, run_dir, state, notify)
        state.wall_s += made.wall_s + time.perf_counter() - after_s
        signal_number = max(processes.gathered(request.signal_number or 0))  # it may reach them in different steps
        is_stopping = signal_number != 0
        if parts.is_main and (step % parts.checkpoint_steps == 0 or is_last or state.is_over or is_stopping):
            checkpoint.save(run_dir, state, parts.model, parts.optimizer, inputs=parts.inputs, scaler=parts.scaler)
        if is_last or state.is_over:
            return
        if is_stopping:
            raise Stopped(
                f"stopped after step {step} of {parts.steps}; everything is saved in {run_dir.path}",
                signal_number=signal_number,
                cure="the same command goes on from there",
            )


def _report_smaller(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
    """Memory ran out: micro-batches are smaller from this step on."""
    size = rows_at_once(parts, state)
    text = f"step {state.step}: out of memory; goes on with {size} in a micro-batch, each step as large as before"
    notify({"stage": events.STAGE, "message": text})
    if parts.is_main:
        run_dir.append_event({"stage": events.STAGE, "step": state.step, "batch_size": size})


def _evaluate(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
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
    _report(parts, run_dir, state, event, notify)
    if state.best_loss is None or state.eval_loss < state.best_loss:
        state.best_loss, state.best_step, state.evaluations_since_best = state.eval_loss, state.step, 0
        _keep_adapter(parts, run_dir)
    else:
        state.evaluations_since_best += 1
        patience = parts.recipe.train.early_stopping_patience
        state.is_over = patience is not None and state.evaluations_since_best >= patience
    if parts.eval_sample is not None and state.best_step == state.step == parts.steps:
        state.whole_loss = _eval_loss(parts, state, notify, None)
        _report(parts, run_dir, state, {"step": state.step, "whole_eval_loss": state.whole_loss}, notify)
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


def _report(parts: Parts, run_dir: RunDir, state: State, event: Mapping[str, Any], notify: Progress) -> None:
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


def _finish(parts: Parts, run_dir: RunDir, state: State, inputs: str, peak_bytes: int) -> TrainResult:
    """Result, picture and record; only then do the checkpoints go. Dying in between, all this is done again."""
    result = result_of(parts, state, peak_bytes)
    draw_curve(run_dir.events, run_dir.loss_curve, title=parts.recipe.name, per=parts.recipe.learned)
    data = dataclasses.asdict(parts.task.prepared.report)
    facts = {"device": str(parts.model.device), "dtype": parts.dtype, "data": data}
    write_result(run_dir, result, inputs, seed=parts.recipe.train.seed, facts=facts)
    for tracker in parts.accelerator.trackers:  # not end_training, which ends the process group too
        tracker.finish()
    shutil.rmtree(run_dir.checkpoints, ignore_errors=True)
    return result


def _out_of_memory(error: BaseException) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"training ran out of memory: {str(error).splitlines()[0] if str(error) else 'no more memory'}",
        cure="`edgetune plan RECIPE --fit NEW` writes a recipe that fits; or lower data.max_seq_len",
    )
