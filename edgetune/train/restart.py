"""Going back: after a divergence the training goes on from its last sound checkpoint, or its start, more slowly.

The new place is written as a checkpoint before anything else, so that a process killed in between finds either the
sound checkpoint, from which the same divergence comes again bit by bit, or the restart.
"""

from __future__ import annotations

import dataclasses

from edgetune.progress import Progress
from edgetune.run_dir import RunDir
from edgetune.train import checkpoint, events, processes
from edgetune.train.checkpoint import Memory
from edgetune.train.divergence import CUT, Diverged, Restart
from edgetune.train.setup import Parts
from edgetune.train.state import State
from edgetune.train.watch import hold_values


def remember(parts: Parts) -> Memory | None:
    """The training before its first step, in host memory; nothing where no restart is asked for."""
    is_needed = parts.recipe.train.divergence_restarts > 0
    return checkpoint.remember(parts.model, parts.optimizer, parts.scaler) if is_needed else None


def go_back(
    parts: Parts, run_dir: RunDir, state: State, start: Memory | None, diverged: Diverged, notify: Progress
) -> State:
    """Model, optimizer and files as they were at the last sound place; the state there, with a lower learning rate.

    Where a restart brought nothing sound, the next one goes back to `start`. The best adapter so far stays, and what
    the lost steps cost stays counted. Raises Diverged if no restart is left.
    """
    before = state.divergence.restarts
    if len(before) >= parts.recipe.train.divergence_restarts:
        raise Diverged(diverged.step, diverged.reason, restarts=len(before)) from None
    parts.optimizer.zero_grad(set_to_none=True)
    sound_step = state.divergence.sound_step
    has_failed = bool(before) and sound_step <= before[-1].step  # that place was no good, so all from the start
    found = None
    if not has_failed:
        found = processes.main_does(lambda: checkpoint.newest(run_dir, inputs=parts.inputs, until=sound_step))
    if found:
        checkpoint.restore(found, parts.model, parts.optimizer, scaler=parts.scaler)
    else:
        assert start is not None
        checkpoint.put_back(start, parts.model, parts.optimizer, parts.scaler)
    sound = found.state if found else State()
    share = state.divergence.share * CUT
    known = dataclasses.replace(sound.divergence, far_evaluations=0, sound_step=sound.step)
    restart = Restart(diverged.step, diverged.reason, sound.step, parts.learning_rate * share)
    kept = (
        "tokens",
        "trained_tokens",
        "train_s",
        "wall_s",
        "pieces",
        "eval_pieces",
        "best_loss",
        "best_step",
        "overfitting",
    )
    state = dataclasses.replace(
        sound,
        **{name: getattr(state, name) for name in kept},
        evaluations_since_best=0,
        divergence=dataclasses.replace(known, share=share, restarts=(*before, restart)),
    )
    hold_values(parts, state)
    processes.main_does(lambda: _write(parts, run_dir, state))
    text = f"step {diverged.step}: {diverged.reason}; goes on after step {state.step} at {restart.learning_rate:.2e}"
    notify({"stage": events.STAGE, "message": text})
    return state


def _write(parts: Parts, run_dir: RunDir, state: State) -> None:
    """The run folder as it belongs to a state: its checkpoint the newest, its events the last."""
    checkpoint.forget_after(run_dir, state.step)
    checkpoint.save(run_dir, state, parts.model, parts.optimizer, inputs=parts.inputs, scaler=parts.scaler)
    begin_events(run_dir, state)


def begin_events(run_dir: RunDir, state: State) -> None:
    """events.jsonl as it belongs to a state: nothing later, and every restart once."""
    events.forget_after(run_dir, state.step)
    told = [event["diverged"] for event in events.read_events(run_dir.events) if "diverged" in event]
    for restart in state.divergence.restarts:
        values = dataclasses.asdict(restart)
        if values not in told:
            event = {"stage": events.STAGE, "step": restart.step, "diverged": values}
            run_dir.append_event(event)
