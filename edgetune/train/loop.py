"""Training, whole: recipe -> runs/x/adapter/. What a step is, is in fit.py; here is what happens around it.

In the flow: data and model give rows and an adapted base; this loop leaves adapter/ (the best by eval loss, PEFT's own
format), events.jsonl, loss.png, results/train.json, and checkpoints/ while it is under way.
"""

from __future__ import annotations

import dataclasses
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
from edgetune.train import checkpoint, curve, events, processes
from edgetune.train.checkpoint import Memory
from edgetune.train.divergence import Diverged
from edgetune.train.evaluation import evaluate, report
from edgetune.train.fit import fit
from edgetune.train.liger import liger_kernels
from edgetune.train.restart import begin_events, go_back, remember
from edgetune.train.result import TrainResult, read_result, result_of, rows_at_once, write_result
from edgetune.train.setup import Parts, set_up
from edgetune.train.state import State
from edgetune.train.stop import StopRequest, listen_for_stop
from edgetune.train.watch import (
    follow_changes,
    hold_values,
    note_start,
)


def train(
    recipe: Recipe,
    run_dir: RunDir,
    *,
    base: Any = None,
    is_compared: bool = False,
    force: bool = False,
    start: RunDir | None = None,
    evaluations: int | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the recipe's adapter in its run folder; goes on from a checkpoint there, returns at once if finished.

    `base`: the recipe's base, where it is loaded already (model.lend.lent takes the adapter off it afterwards).
    `is_compared`: with other trainings, so that each evaluation is on all eval rows. `force` first empties the folder
    of an older run. `start`: a training of the same steps, adapter and data that was paused, from whose checkpoint this
    one begins. `evaluations`: it is paused after so many in all, its checkpoint saved; unless that is its end, the
    result is of what was made. Several processes, started by a launcher, all call this.

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
            parts = set_up(recipe, run_dir, inputs, notify, base=base, is_compared=is_compared)
            if evaluations is not None:
                parts = dataclasses.replace(parts, pause_step=evaluations * parts.eval_steps)
            result = _train(parts, run_dir, inputs, start, notify)
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


def _train(parts: Parts, run_dir: RunDir, inputs: str, other: RunDir | None, notify: Progress) -> TrainResult:
    processes.copy_from_main(parts.trained)
    start = remember(parts)
    found = processes.main_does(lambda: _find_checkpoint(parts, run_dir, other))
    if found:
        checkpoint.restore(found, parts.model, parts.optimizer, scaler=parts.scaler)
        notify({"stage": "train", "message": f"goes on after step {found.state.step} of {parts.steps}"})
    state = found.state if found else State()
    hold_values(parts, state)
    with (
        listen_for_stop() as request,
        liger_kernels(parts.model, parts.recipe.train.use_liger_kernel),
        lean_heap(parts.recipe.gradient_checkpointing),
    ):
        state = _run_with_restarts(parts, run_dir, state, start, notify, request)
    peak_bytes = max(processes.gathered(peak_memory_bytes()))
    if state.step < parts.steps and not state.is_over:
        return result_of(parts, state, peak_bytes)
    return processes.main_does(lambda: _finish(parts, run_dir, state, inputs, peak_bytes))


def _find_checkpoint(parts: Parts, run_dir: RunDir, other: RunDir | None) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, the run folder being as it was then; at first that of another training, if any."""
    checkpoint.sweep(run_dir)
    write_text(run_dir.recipe, parts.recipe.to_toml())
    if other is not None and not checkpoint.find(run_dir):
        checkpoint.adopt(other, run_dir, inputs=parts.inputs)
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
    """Optimizer steps until the last one, a pause, early stopping, or a signal, and all that follows each of them."""
    if state.is_over or state.step == parts.pause_step:
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
        report(parts, run_dir, state, event, notify)
        if step % parts.eval_steps == 0 or is_last:
            evaluate(parts, run_dir, state, notify)
        follow_changes(parts, run_dir, state, notify)
        state.wall_s += made.wall_s + time.perf_counter() - after_s
        signal_number = max(processes.gathered(request.signal_number or 0))  # it may reach them in different steps
        is_stopping, is_end = signal_number != 0, is_last or state.is_over or step == parts.pause_step
        if parts.is_main and (step % parts.checkpoint_steps == 0 or is_end or is_stopping):
            checkpoint.save(run_dir, state, parts.model, parts.optimizer, inputs=parts.inputs, scaler=parts.scaler)
        if is_end:
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


def _finish(parts: Parts, run_dir: RunDir, state: State, inputs: str, peak_bytes: int) -> TrainResult:
    """Result, picture and record; only then do the checkpoints go. Dying in between, all this is done again."""
    result = result_of(parts, state, peak_bytes)
    curve.draw_curve(run_dir.events, run_dir.loss_curve, title=parts.recipe.name, per=parts.recipe.learned)
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
