"""Training, whole: recipe -> runs/x/adapter/. What a step is, is in fit.py; here is what happens around it.

In the flow: data and model give rows and an adapted base; this loop leaves adapter/ (the best by eval loss, PEFT's own
format), events.jsonl, loss.png, results/train.json, and checkpoints/ while it is under way.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgetune.data.read import content_hashes, is_hub_id, splits
from edgetune.errors import OutOfMemoryError, Stopped
from edgetune.files import read_json, write_json, write_text
from edgetune.hashes import hash_tree, hash_values
from edgetune.model.base import hash_base, resolve_base
from edgetune.model.heap import lean_heap
from edgetune.model.memory import give_back_memory, is_out_of_memory, peak_memory_bytes, reset_peak
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir, claim
from edgetune.train import checkpoint, events, processes
from edgetune.train.checkpoint import Memory, State
from edgetune.train.curve import draw_curve
from edgetune.train.divergence import Diverged
from edgetune.train.fit import fit
from edgetune.train.liger import liger_kernels
from edgetune.train.restart import begin_events, go_back, remember
from edgetune.train.setup import Parts, set_up
from edgetune.train.stop import StopRequest, listen_for_stop
from edgetune.train.watch import (
    follow_changes,
    follow_plateau,
    hold_values,
    note_start,
    watch_for_divergence,
    watch_for_overfitting,
)

Progress = Callable[[Mapping[str, Any]], None]
MOST_EVAL_PIECES = 256
"""More rows than that are in no batch of an evaluation."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished training was. Losses in nats per trained token; `tokens` are those read, pads aside."""

    steps: int
    train_loss: float
    """Mean since the evaluation before the last."""
    eval_loss: float | None
    """Of the adapter that was kept; None if there was nothing to evaluate on."""
    best_step: int
    tokens: int
    trained_tokens: int
    tokens_per_s: float
    """Tokens read per second of training steps."""
    peak_bytes: int
    """Of the process that took most."""
    train_s: float
    """Seconds in training steps."""
    wall_s: float
    """Seconds in the loop, evaluations and checkpoints included, over all starts."""
    learning_rate: float
    stopped_early: bool
    batch_size: int | None = None
    """Sequences in a micro-batch at the end: fewer than the recipe's where memory ran out."""
    rate_cuts: int = 0
    """How often schedule = "plateau" lowered the learning rate."""
    restarts: list[dict[str, Any]] = field(default_factory=list)
    """Each divergence.Restart after which the training went on at a lower learning rate."""
    overfitting: list[dict[str, Any]] = field(default_factory=list)
    """Each overfitting.Finding."""
    processes: int = 1
    """How many trained together, at the end."""


def train(
    recipe: Recipe,
    run_dir: RunDir,
    *,
    base: Any = None,
    force: bool = False,
    start: RunDir | None = None,
    evaluations: int | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the recipe's adapter in its run folder; goes on from a checkpoint there, returns at once if finished.

    `base`: the recipe's base, where it is loaded already (model.lend.lent takes the adapter off it afterwards).
    `force` first empties the folder of an older run. `start`: a training of the same steps, adapter and data that was
    paused, from whose checkpoint this one begins. `evaluations`: it is paused after so many in all, its checkpoint
    saved; unless that is its end, the result is of what was made. Several processes, started by a launcher, all call
    this.

    Raises Stopped after SIGINT or SIGTERM (a checkpoint was saved), RunError for a folder of another recipe or a full
    disk, DataError for data without a trainable token, HardwareError for an optimizer this machine cannot run.
    """
    with processes.together():
        notify = progress if progress and processes.is_main() else _say_nothing
        asked = processes.main_does(lambda: _claim(recipe, run_dir, force=force))
        inputs = _hash_inputs(recipe, asked)
        processes.same_everywhere(
            inputs,
            what="another recipe, base or data",
            cure="give every machine the same files, or a disk that they share",
        )
        if finished := processes.main_does(lambda: _read_result(run_dir, inputs)):
            notify({"stage": "train", "message": f"up to date: {run_dir.adapter}"})
            return finished
        reset_peak()
        try:
            parts = set_up(recipe, run_dir, inputs, notify, base=base)
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
    base = resolve_base(recipe.model.base, recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code)
    local = [name for name in (recipe.data.train, recipe.data.eval) if name and not is_hub_id(name)]
    contents = [content_hashes(name, split) for name in local for split in splits(name) or (None,)]
    adapter = Path(recipe.lora.init_from).expanduser() if recipe.lora.init_from else None
    adapter_hash = hash_tree(adapter) if adapter and adapter.is_dir() else None
    return hash_values(asked, hash_base(base), contents, adapter_hash)


def _read_result(run_dir: RunDir, inputs: str) -> TrainResult | None:
    """The result of the training that is finished in the run folder; None if none is.

    Raises RunError if it was made from other inputs.
    """
    if run_dir.read().get("stages", {}).get("train") is None or not run_dir.adapter.exists():
        return None
    if not run_dir.is_current("train", inputs):
        raise checkpoint.changed_inputs(run_dir)
    values = read_json(run_dir.results / "train.json")
    known = {item.name for item in dataclasses.fields(TrainResult)}
    return TrainResult(**{name: value for name, value in values.items() if name in known})


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
        return _result(parts, state, peak_bytes)
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
        _report(parts, run_dir, state, event, notify)
        if step % parts.eval_steps == 0 or is_last:
            _evaluate(parts, run_dir, state, notify)
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


def _say_nothing(event: Mapping[str, Any]) -> None:
    """Progress of a process that nobody watches."""


def _report_smaller(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
    """Memory ran out: micro-batches are smaller from this step on."""
    size = _rows_at_once(parts, state)
    text = f"step {state.step}: out of memory; goes on with {size} in a micro-batch, each step as large as before"
    notify({"stage": events.STAGE, "message": text})
    if parts.is_main:
        run_dir.append_event({"stage": events.STAGE, "step": state.step, "batch_size": size})


def _rows_at_once(parts: Parts, state: State) -> int:
    return math.ceil(parts.recipe.batch_size / state.pieces)


def _evaluate(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
    """Eval loss after a step; keeps the adapter if it is the best so far, and counts towards early stopping."""
    train_loss, state.train_loss_tokens = state.train_loss, 0
    sums = processes.gathered(_eval_sums(parts, state, notify))
    total, count = (sum(numbers) for numbers in zip(*sums, strict=True))
    if count == 0:
        _keep_adapter(parts, run_dir)
        return
    state.eval_loss = total / count
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
    watch_for_divergence(state, train_loss)
    watch_for_overfitting(parts, run_dir, state, train_loss, notify)
    follow_plateau(parts, run_dir, state, notify)


def _eval_sums(parts: Parts, state: State, notify: Progress) -> tuple[float, int]:
    """Summed loss of this process's part of the eval rows, and what it sums over; in smaller batches where it must."""
    while True:
        try:
            return parts.task.evaluate(
                parts.model, slice(processes.rank(), None, processes.count()), pieces=state.eval_pieces
            )
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
    result = _result(parts, state, peak_bytes)
    draw_curve(run_dir.events, run_dir.loss_curve, title=parts.recipe.name, per=parts.recipe.learned)
    data = dataclasses.asdict(parts.task.prepared.report)
    facts = {"device": str(parts.model.device), "dtype": parts.dtype, "data": data}
    record = {**dataclasses.asdict(result), **facts, "provenance": provenance(parts.recipe.train.seed)}
    run_dir.results.mkdir(exist_ok=True)
    write_json(run_dir.results / "train.json", record)
    run_dir.finish("train", inputs, steps=result.steps, eval_loss=result.eval_loss)
    for tracker in parts.accelerator.trackers:  # not end_training, which ends the process group too
        tracker.finish()
    shutil.rmtree(run_dir.checkpoints, ignore_errors=True)
    return result


def _result(parts: Parts, state: State, peak_bytes: int) -> TrainResult:
    return TrainResult(
        steps=state.step,
        train_loss=state.train_loss,
        eval_loss=state.best_loss,
        best_step=state.best_step or state.step,
        tokens=state.tokens,
        trained_tokens=state.trained_tokens,
        tokens_per_s=state.tokens / max(state.train_s, 1e-9),
        peak_bytes=peak_bytes,
        train_s=state.train_s,
        wall_s=state.wall_s,
        learning_rate=parts.learning_rate,
        stopped_early=state.is_over,
        batch_size=_rows_at_once(parts, state),
        rate_cuts=state.plateau.cuts,
        restarts=[dataclasses.asdict(restart) for restart in state.divergence.restarts],
        overfitting=[dataclasses.asdict(finding) for finding in state.overfitting.findings],
        processes=processes.count(),
    )


def _out_of_memory(error: BaseException) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"training ran out of memory: {str(error).splitlines()[0] if str(error) else 'no more memory'}",
        cure="`edgetune plan RECIPE --fit NEW` writes a recipe that fits; or lower data.max_seq_len",
    )
