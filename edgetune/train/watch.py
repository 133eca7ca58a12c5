"""What an evaluation may change in the training itself; the loop calls it after each one, State keeps the outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgetune.progress import Progress
from edgetune.recipe import AFTER, value_after
from edgetune.run_dir import RunDir
from edgetune.train import divergence, events, overfitting, plateau
from edgetune.train.fused import dropout_of, set_dropout
from edgetune.train.setup import Parts
from edgetune.train.state import State


def follow_plateau(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
    """schedule = "plateau": cut the learning rate of the steps to come where the eval loss has stopped falling."""
    table = parts.recipe.train
    if table.schedule != "plateau" or state.eval_loss is None or state.is_over or state.step == parts.steps:
        return
    before = state.plateau
    state.plateau = plateau.after_evaluation(
        before,
        state.eval_loss,
        patience=table.plateau_patience,
        least=table.min_learning_rate_ratio,
    )
    if state.plateau.cuts > before.cuts:
        rate = parts.learning_rate * state.plateau.share
        text = f"step {state.step}: the eval loss no longer falls; the learning rate is {rate:.2e} from here"
        tell(parts, run_dir, {"step": state.step, "cut_to": rate}, text, notify)


def watch_for_overfitting(parts: Parts, run_dir: RunDir, state: State, train_loss: float, notify: Progress) -> None:
    """Warn where the eval loss rises while the training loss falls, and raise what the recipe says against it."""
    if state.eval_loss is None or state.is_over or state.step == parts.steps:
        return
    before = state.overfitting
    known = overfitting.after_evaluation(before, state.step, train_loss=train_loss, eval_loss=state.eval_loss)
    if len(known.findings) > len(before.findings):
        decay = max(group["weight_decay"] for group in parts.optimizer.param_groups)
        known = overfitting.raised(
            known, parts.recipe.train.on_overfitting, dropout=dropout_of(parts.model), weight_decay=decay
        )
        found = known.findings[-1]
        text = (
            f"step {state.step}: overfitting: the eval loss has risen from {found.best_eval_loss:.4f} to "
            f"{found.eval_loss:.4f} while the training loss fell from {found.best_train_loss:.4f} to "
            f"{found.train_loss:.4f}; "
        )
        text += f"{found.raised} is {found.to:g} from here" if found.raised else f"step {state.best_step} is kept"
        tell(parts, run_dir, {"step": state.step, "overfitting": dataclasses.asdict(found)}, text, notify)
    state.overfitting = known
    hold_values(parts, state)


def hold_values(parts: Parts, state: State) -> None:
    """Dropout and weight decay of the step to come: as train.changes have them, or what was raised against overfitting;
    as they are where nothing changes them.
    """
    recipe, raised = parts.recipe, state.overfitting
    dropout, decay = raised.dropout, raised.weight_decay
    if recipe.train.changes is not None:
        dropout = value_after(recipe.train.changes, "lora.dropout", state.step, recipe.lora.dropout)
        decay = value_after(recipe.train.changes, "train.weight_decay", state.step, recipe.train.weight_decay)
    if dropout is not None and dropout != dropout_of(parts.model):
        set_dropout(parts.model, dropout)
    if decay is not None:
        for group in parts.optimizer.param_groups:
            if all(parameter.ndim >= 2 for parameter in group["params"]):
                group["weight_decay"] = decay


def follow_changes(parts: Parts, run_dir: RunDir, state: State, notify: Progress) -> None:
    """train.changes: what is another value from the next step on."""
    change = next((one for one in parts.recipe.train.changes or () if one[AFTER] == state.step), None)
    if change is not None and state.step < parts.steps:
        hold_values(parts, state)
        values = {key: value for key, value in change.items() if key != AFTER}
        text = ", ".join(f"{key} is {value:.3g}" for key, value in values.items())
        tell(parts, run_dir, {"step": state.step, "changes": values}, f"step {state.step}: {text} from here", notify)


def note_start(state: State, loss: float) -> None:
    """Keep the loss of the first step, to tell a divergence by."""
    if state.step == 1:
        state.divergence = dataclasses.replace(state.divergence, start_loss=loss)


def watch_for_divergence(state: State, train_loss: float) -> None:
    """Note whether both losses are far above their best. Raises Diverged where they have stayed there."""
    if state.eval_loss is not None and state.best_loss is not None:
        state.divergence = divergence.after_evaluation(
            state.divergence,
            state.step,
            train_loss=train_loss,
            eval_loss=state.eval_loss,
            best_eval_loss=state.best_loss,
        )


def tell(parts: Parts, run_dir: RunDir, event: Mapping[str, Any], text: str, notify: Progress) -> None:
    """An event that is no measurement, to events.jsonl and as a line to the user."""
    notify({"stage": events.STAGE, "message": text})
    if parts.is_main:
        run_dir.append_event({"stage": events.STAGE, **event})
