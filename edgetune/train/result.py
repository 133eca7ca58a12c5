"""What a training leaves as numbers: results/train.json, and that it is finished.

In the flow: the state after the last step -> TrainResult -> the run folder, from which the same command reads it again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.files import read_json, write_json
from edgetune.provenance import provenance
from edgetune.run_dir import RunDir
from edgetune.train import checkpoint, processes
from edgetune.train.setup import Parts
from edgetune.train.state import State


@dataclass(frozen=True)
class TrainResult:
    """What a finished training was. Losses in nats per trained token; `tokens` are those read, pads aside."""

    steps: int
    train_loss: float
    """Mean since the evaluation before the last."""
    eval_loss: float | None
    """Of the adapter that was kept, over `eval_rows`; None without any row."""
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
    eval_rows: int | None = None
    """Rows that `eval_loss` is of: all, or some of many where an earlier step was the best; see eval_share."""


def read_result(run_dir: RunDir, inputs: str) -> TrainResult | None:
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


def write_result(
    run_dir: RunDir, result: TrainResult, inputs: str, *, seed: int, facts: Mapping[str, Any] | None = None
) -> None:
    """Write results/train.json, with further facts, and note that the training of these inputs is finished."""
    run_dir.results.mkdir(exist_ok=True)
    record = {**dataclasses.asdict(result), **(facts or {}), "provenance": provenance(seed)}
    write_json(run_dir.results / "train.json", record)
    run_dir.finish("train", inputs, steps=result.steps, eval_loss=result.eval_loss)


def eval_rows(parts: Parts, *, is_whole: bool) -> int:
    """How many rows the eval loss of the adapter that was kept is of."""
    rows = parts.task.prepared.eval if is_whole or parts.eval_sample is None else parts.eval_sample
    return len(rows)


def result_of(parts: Parts, state: State, peak_bytes: int) -> TrainResult:
    """The result of a training that stands after its last step."""
    return TrainResult(
        steps=state.step,
        train_loss=state.train_loss,
        eval_loss=state.best_loss if state.whole_loss is None else state.whole_loss,
        eval_rows=eval_rows(parts, is_whole=state.whole_loss is not None),
        best_step=state.best_step or state.step,
        tokens=state.tokens,
        trained_tokens=state.trained_tokens,
        tokens_per_s=state.tokens / max(state.train_s, 1e-9),
        peak_bytes=peak_bytes,
        train_s=state.train_s,
        wall_s=state.wall_s,
        learning_rate=parts.learning_rate,
        stopped_early=state.is_over,
        batch_size=rows_at_once(parts, state),
        rate_cuts=state.plateau.cuts,
        restarts=[dataclasses.asdict(restart) for restart in state.divergence.restarts],
        overfitting=[dataclasses.asdict(finding) for finding in state.overfitting.findings],
        processes=processes.count(),
    )


def rows_at_once(parts: Parts, state: State) -> int:
    """Sequences in a micro-batch: the recipe's, or what is left of it since memory ran out."""
    return math.ceil(parts.recipe.batch_size / state.pieces)
