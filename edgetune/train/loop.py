"""Training, whole: recipe -> runs/x/adapter/. Our own loop on Accelerate; every step of it is in this file.

In the flow: data and model give rows and an adapted base; this loop leaves adapter/ (the best by eval loss, PEFT's own
format), events.jsonl, loss.png, results/train.json, and checkpoints/ while it is under way.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from edgetune.data.read import content_hashes, is_hub_id, splits
from edgetune.errors import OutOfMemoryError, RunError, Stopped
from edgetune.files import read_json, write_json, write_text
from edgetune.hashes import hash_tree, hash_values
from edgetune.model.base import hash_base, resolve_base
from edgetune.model.memory import peak_memory_bytes, reset_peak
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir, claim
from edgetune.train import checkpoint, events
from edgetune.train.checkpoint import State
from edgetune.train.curve import draw_curve
from edgetune.train.loss import autocast
from edgetune.train.schedule import learning_rate_share
from edgetune.train.setup import Parts, set_up
from edgetune.train.stop import StopRequest, listen_for_stop
from edgetune.train.task import stream

Progress = Callable[[Mapping[str, Any]], None]


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
    train_s: float
    """Seconds in training steps."""
    wall_s: float
    """Seconds in the loop, evaluations and checkpoints included, over all starts."""
    learning_rate: float
    stopped_early: bool


def train(recipe: Recipe, run_dir: RunDir, *, progress: Progress | None = None) -> TrainResult:
    """Train the recipe's adapter in its run folder; goes on from a checkpoint there, returns at once if finished.

    Raises Stopped after SIGINT or SIGTERM (a checkpoint was saved), RunError for a folder of another recipe or a full
    disk, DataError for data without a trainable token, HardwareError for an optimizer this machine cannot run.
    """
    notify = progress or _say_nothing
    claim(run_dir, recipe.to_toml())
    inputs = find_inputs(recipe, run_dir)
    if finished := _read_result(run_dir, inputs):
        notify({"stage": "train", "message": f"up to date: {run_dir.adapter}"})
        return finished
    reset_peak()
    try:
        return _train(recipe, run_dir, inputs, notify)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise _out_of_memory(error) from None


def find_inputs(recipe: Recipe, run_dir: RunDir) -> str:
    """Hash of what the adapter is made from: the recipe as claimed, the base, local data, the adapter to go on from.

    Raises DataError if the data is not there.
    """
    base = resolve_base(recipe.model.base, recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code)
    local = [name for name in (recipe.data.train, recipe.data.eval) if name and not is_hub_id(name)]
    contents = [content_hashes(name, split) for name in local for split in splits(name) or (None,)]
    adapter = Path(recipe.lora.init_from).expanduser() if recipe.lora.init_from else None
    adapter_hash = hash_tree(adapter) if adapter and adapter.is_dir() else None
    return hash_values(run_dir.read()["asked"], hash_base(base), contents, adapter_hash)


def _read_result(run_dir: RunDir, inputs: str) -> TrainResult | None:
    """The result of the training that is finished in the run folder; None if none is.

    Raises RunError if it was made from other inputs.
    """
    if run_dir.read().get("stages", {}).get("train") is None or not run_dir.adapter.exists():
        return None
    if not run_dir.is_current("train", inputs):
        raise checkpoint.changed_inputs(run_dir)
    values = read_json(run_dir.results / "train.json")
    return TrainResult(**{item.name: values[item.name] for item in dataclasses.fields(TrainResult)})


def _train(recipe: Recipe, run_dir: RunDir, inputs: str, notify: Progress) -> TrainResult:
    parts = set_up(recipe, run_dir, inputs, notify)
    if not parts.is_main:
        notify = _say_nothing
    if parts.is_main:
        checkpoint.sweep(run_dir)
        write_text(run_dir.recipe, parts.recipe.to_toml())
    found = checkpoint.restore(run_dir, parts.model, parts.optimizer, inputs=parts.inputs, scaler=parts.scaler)
    state, best = found or (State(), None)
    if found:
        notify({"stage": "train", "message": f"goes on after step {state.step} of {parts.steps}"})
    if parts.is_main:
        checkpoint.restore_best(run_dir, best)
        events.forget_after(run_dir, state.step)
    with listen_for_stop() as request:
        _run_steps(parts, run_dir, state, notify, request)
    if parts.is_main:
        return _finish(parts, run_dir, state, inputs)
    return _result(parts, state)


def _run_steps(parts: Parts, run_dir: RunDir, state: State, notify: Progress, request: StopRequest) -> None:
    """Optimizer steps until the last one, early stopping, or a signal. Everything that happens in a step is here."""
    table = parts.recipe.train
    micro = stream(parts.task, state.epoch, state.offset)
    while state.step < parts.steps and not state.is_over:
        start_s = time.perf_counter()
        step = state.step + 1
        learning_rate = parts.learning_rate * learning_rate_share(
            step,
            parts.steps,
            schedule=table.schedule,
            warmup_ratio=table.warmup_ratio,
            least=table.min_learning_rate_ratio,
        )
        micro_batches = _next_micro_batches(parts, micro, state, step)
        loss, trained, read = _make_step(parts, micro_batches, learning_rate, step)
        state.step = step
        state.tokens += read
        state.trained_tokens += trained
        state.train_loss += (loss - state.train_loss) * trained / (state.train_loss_tokens + trained)
        state.train_loss_tokens += trained
        step_s = time.perf_counter() - start_s
        state.train_s += step_s
        event = {"step": step, "loss": loss, "learning_rate": learning_rate, "tokens_per_s": read / step_s}
        _report(parts, run_dir, state, event, notify)
        is_last = step == parts.steps
        if step % parts.eval_steps == 0 or is_last:
            _evaluate(parts, run_dir, state, notify)
        state.wall_s += time.perf_counter() - start_s
        is_stopping = _is_stopping(parts, request)
        if parts.is_main and (step % parts.checkpoint_steps == 0 or is_last or state.is_over or is_stopping):
            checkpoint.save(run_dir, state, parts.model, parts.optimizer, inputs=parts.inputs, scaler=parts.scaler)
        if is_stopping and not (is_last or state.is_over):
            raise Stopped(
                f"stopped after step {step} of {parts.steps}; everything is saved in {run_dir.path}",
                signal_number=request.signal_number or signal.SIGTERM,
                cure="the same command goes on from there",
            )


def _say_nothing(event: Mapping[str, Any]) -> None:
    """Progress of a process that nobody watches."""


def _is_stopping(parts: Parts, request: StopRequest) -> bool:
    """Whether a signal came; all processes agree, though it may have reached them in different steps."""
    is_asked = request.signal_number is not None
    if parts.accelerator.num_processes == 1:
        return is_asked
    asked = torch.tensor(int(is_asked), device=parts.model.device)
    return bool(parts.accelerator.reduce(asked, "sum"))


def _next_micro_batches(parts: Parts, micro: Iterator[tuple[int, int, Any]], state: State, step: int) -> list[Any]:
    """The micro-batches of one optimizer step, all processes together; moves the state's place in the data on."""
    left = parts.micro_batches - (step - 1) * parts.micro_batches_a_step
    taken = list(islice(micro, min(parts.micro_batches_a_step, left)))
    state.epoch, state.offset, _ = taken[-1]
    return [rows for _, _, rows in taken]


def _make_step(parts: Parts, micro_batches: list[Any], learning_rate: float, step: int) -> tuple[float, int, int]:
    """One optimizer step over micro-batches: mean loss (nats), trained tokens (or texts), tokens read.

    Each micro-batch's summed loss is divided by the trained tokens of the whole step, on all processes, so that the
    gradient is that of one batch of them all, however unequal they are.
    """
    accelerator, device = parts.accelerator, parts.model.device
    mine = micro_batches[accelerator.process_index :: accelerator.num_processes]
    batches = [parts.task.collate(rows) for rows in mine]
    counts = [[batch.trained, batch.read] for batch in batches]
    sums = accelerator.reduce(torch.tensor(counts or [[0, 0]], device=device).sum(0), "sum")
    trained, read = int(sums[0]), int(sums[1])
    total = torch.zeros((), device=device)
    for batch in batches:
        with autocast(parts.model):
            loss, _ = parts.task.loss_sum(parts.model, batch.to(device))
        loss = loss / max(trained, 1)
        accelerator.backward(loss)
        total += loss.detach()
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, "sum")
        _sum_gradients(parts)
    mean = float(total)
    if not math.isfinite(mean):
        raise RunError(
            f"step {step}: the loss is {mean}; the adapter has diverged",
            cure="lower train.learning_rate, or look at the data of this step; the last checkpoint is sound",
        )
    accelerator.clip_grad_norm_(parts.trained, parts.recipe.train.max_grad_norm)
    for group in parts.optimizer.param_groups:
        group["lr"] = learning_rate * group["share"]
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    return mean, trained, read


def _sum_gradients(parts: Parts) -> None:
    """Gradients summed over processes; the adapter is small, so no wrapper and no buckets."""
    for parameter in parts.trained:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = parts.accelerator.reduce(gradient, "sum")


def _evaluate(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
    """Eval loss after a step; keeps the adapter if it is the best so far, and counts towards early stopping."""
    train_loss, state.train_loss_tokens = state.train_loss, 0
    total, count = parts.task.evaluate(parts.model)
    if count == 0:
        _keep_adapter(parts, run_dir)
        return
    state.eval_loss = total / count
    if not math.isfinite(state.eval_loss):
        raise RunError(f"step {state.step}: the eval loss is {state.eval_loss}", cure="lower train.learning_rate")
    event = {"step": state.step, "eval_loss": state.eval_loss, "train_loss": train_loss}
    _report(parts, run_dir, state, event, notify)
    if state.best_loss is None or state.eval_loss < state.best_loss:
        state.best_loss, state.best_step, state.evaluations_since_best = state.eval_loss, state.step, 0
        _keep_adapter(parts, run_dir)
    else:
        state.evaluations_since_best += 1
        patience = parts.recipe.train.early_stopping_patience
        state.is_over = patience is not None and state.evaluations_since_best >= patience


def _keep_adapter(parts: Parts, run_dir: RunDir) -> None:
    if parts.is_main:
        parts.task.save(parts.model, run_dir.adapter)


def _report(parts: Parts, run_dir: RunDir, state: State, event: Mapping[str, Any], notify: Progress) -> None:
    """An event to events.jsonl, to the trackers, and with memory and time left to the progress callback."""
    if not parts.is_main:
        return
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
            "memory_bytes": peak_memory_bytes(),
            "left_s": spent_s / state.step * steps_left,
            **event,
        }
    )


def _finish(parts: Parts, run_dir: RunDir, state: State, inputs: str) -> TrainResult:
    """Result, picture and record; only then do the checkpoints go. Dying in between, all this is done again."""
    result = _result(parts, state)
    draw_curve(run_dir.events, run_dir.loss_curve, title=parts.recipe.name)
    data = dataclasses.asdict(parts.task.prepared.report)
    facts = {"device": str(parts.model.device), "dtype": parts.dtype, "data": data}
    record = {**dataclasses.asdict(result), **facts, "provenance": provenance(parts.recipe.train.seed)}
    run_dir.results.mkdir(exist_ok=True)
    write_json(run_dir.results / "train.json", record)
    run_dir.finish("train", inputs, steps=result.steps, eval_loss=result.eval_loss)
    parts.accelerator.end_training()
    shutil.rmtree(run_dir.checkpoints, ignore_errors=True)
    return result


def _result(parts: Parts, state: State) -> TrainResult:
    return TrainResult(
        steps=state.step,
        train_loss=state.train_loss,
        eval_loss=state.best_loss,
        best_step=state.best_step or state.step,
        tokens=state.tokens,
        trained_tokens=state.trained_tokens,
        tokens_per_s=state.tokens / max(state.train_s, 1e-9),
        peak_bytes=peak_memory_bytes(),
        train_s=state.train_s,
        wall_s=state.wall_s,
        learning_rate=parts.learning_rate,
        stopped_early=state.is_over,
    )


def _out_of_memory(error: BaseException) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"training ran out of memory: {str(error).splitlines()[0] if str(error) else 'no more memory'}",
        cure="lower train.batch_size or data.max_seq_len, or set train.gradient_checkpointing = true",
    )
