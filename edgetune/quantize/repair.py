"""Repair of a rounded model on the user's rows: short training of scales, norms and biases, the integers frozen.

In the flow: merged model's matrices on the grid -> this loop -> the same integers with better scales, as they are
shipped. What is best by eval loss is kept, the unrepaired model among the choices. Prototype on real weights: merged
and rounded 0.773 nats a token, after 100 steps 0.683.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgetune.data.prepare import Prepared
from edgetune.errors import DivergedError
from edgetune.model.base import load_merged
from edgetune.model.weights import Place
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.load import load_on_grid
from edgetune.quantize.repairable import repaired
from edgetune.recipe import Recipe
from edgetune.train.divergence import Diverged
from edgetune.train.fit import Position, Training, fit
from edgetune.train.generation import Generation
from edgetune.train.loss import IGNORED, chunks, evaluate_loss, head_logits, trained_states, use_segments
from edgetune.train.schedule import learning_rate_share

Progress = Callable[[Mapping[str, Any]], None]
Kept = TypeVar("Kept")
EVALUATIONS = 4
MOST_EVAL_ROWS = 200
WARMUP_RATIO, LEAST_SHARE = 0.05, 0.05
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Repair:
    """A repaired model. Losses in nats per trained token, on eval rows of the recipe."""

    matrices: Mapping[str, QuantizedMatrix]
    vectors: Mapping[str, Tensor]
    """Norms and biases, float32, by the names of the checkpoint's tensors."""
    loss_before: float
    loss_after: float
    best_step: int
    """0 where no step was better than none."""
    wall_s: float
    curve: tuple[tuple[int, float], ...] = field(default=())
    """(step, eval loss)."""

    def to_json(self) -> dict[str, Any]:
        """The numbers, for quantized.json."""
        names = ("loss_before", "loss_after", "best_step", "wall_s", "curve")
        return {name: getattr(self, name) for name in names}


def repair(
    merged: Path,
    matrices: Mapping[str, QuantizedMatrix],
    rows: Prepared,
    recipe: Recipe,
    *,
    pad_id: int,
    progress: Progress | None = None,
) -> Repair:
    """Train scales, norms and biases of the merged folder's matrices (by tensor name) as [export] repair_* says.

    Batches are those of [train], drawn by its seed. Memory: the integers in their own bits, vectors, three numbers a
    scale, activations as in training; with a teacher, the merged model too. Raises DivergedError.
    """
    table, started = recipe.export, time.monotonic()
    torch.manual_seed(recipe.train.seed)
    model = load_for_loss(merged, matrices, rounds_inputs=table.accuracy_level == 4)
    schedule = Schedule("repair", table.repair_steps, table.repair_learning_rate)
    best, curve = train_best(
        model, lambda: repaired(model), merged, rows, recipe, schedule=schedule, pad_id=pad_id, progress=progress
    )
    best_step, loss_after = min(curve, key=lambda point: (point[1], point[0]))
    return Repair(
        matrices={**matrices, **best[0]},
        vectors=best[1],
        loss_before=curve[0][1],
        loss_after=loss_after,
        best_step=best_step,
        wall_s=time.monotonic() - started,
        curve=curve,
    )


@dataclass(frozen=True)
class Schedule:
    """A short training after the training."""

    stage: str
    """Its name in progress and messages, and in [export]: <stage>_learning_rate."""
    steps: int
    learning_rate: float
    """The highest."""

    def learning_rate_of(self, step: int) -> float:
        """Of step 1..steps: a short warm-up, then down in a straight line."""
        return self.learning_rate * learning_rate_share(
            step, self.steps, schedule="linear", warmup_ratio=WARMUP_RATIO, least=LEAST_SHARE
        )


def train_best(
    model: Any,
    keep: Callable[[], Kept],
    merged: Path,
    rows: Prepared,
    recipe: Recipe,
    *,
    schedule: Schedule,
    pad_id: int,
    progress: Progress | None,
) -> tuple[Kept, tuple[tuple[int, float], ...]]:
    """Train what is open in a model, by [export] repair_on; what `keep` gave when the eval loss was least, and losses.

    The losses are (step, nats per trained token), step 0 among them: what no step made better is kept as it was.
    """
    target, steps = recipe.export.repair_on, schedule.steps
    teacher = _teacher(merged, model.device) if target != "labels" else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = Training(
        model=model,
        trained=trained,
        optimizer=torch.optim.AdamW(trained, lr=schedule.learning_rate, betas=BETAS, weight_decay=0.0),
        data=RepairData(recipe, rows, pad_id, teacher),
        steps=steps,
        batch_size=recipe.batch_size,
        accumulation=recipe.train.gradient_accumulation_steps,
        learning_rate=schedule.learning_rate_of,
    )
    curve = [(0, eval_loss(model, rows, recipe, pad_id))]
    best = keep()
    try:
        for step in fit(training, Position()):
            if progress:
                progress({"stage": schedule.stage, "step": step.number, "steps": steps, "loss": step.loss})
            if step.number * EVALUATIONS % steps < EVALUATIONS:
                curve.append((step.number, eval_loss(model, rows, recipe, pad_id)))
                if curve[-1][1] < min(value for _, value in curve[:-1]):
                    best = keep()
    except Diverged as error:
        raise DivergedError(
            f"{schedule.stage}, step {error.step}: {error.reason}", cure=f"lower export.{schedule.stage}_learning_rate"
        ) from None
    return best, tuple(curve)


def load_for_loss(
    merged: Path,
    matrices: Mapping[str, QuantizedMatrix],
    *,
    rounds_inputs: bool,
    vectors: Mapping[str, Place] | None = None,
) -> Any:
    """`quantize.load.load_on_grid` with training's attention, which keeps the rows of a batch apart."""
    model = load_on_grid(merged, matrices, rounds_inputs=rounds_inputs, vectors=vectors)
    use_segments(model)
    return model


@dataclass(frozen=True)
class RepairData(Generation):
    """The rows of training in its order, and what repair learns from them."""

    teacher: Any = None
    """The unquantised model, where [export] repair_on asks for it."""

    def loss_sum(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The repair loss summed over the trained tokens of a batch."""
        states, targets = trained_states(model, batch)
        if self.teacher is None:
            parts = ((rows, wanted, None) for rows, wanted in chunks(model, states, targets))
        else:
            with torch.no_grad():
                truth, _ = trained_states(self.teacher, batch)
            pairs = zip(chunks(model, states, targets), chunks(self.teacher, truth, targets), strict=True)
            parts = ((rows, wanted, true) for (rows, wanted), (true, _) in pairs)
        total = torch.zeros((), device=states.device)
        for rows, wanted, true in parts:
            total = total + checkpoint(self._chunk_loss, model, rows, wanted, true, use_reentrant=False)
        return total, len(targets)

    def _chunk_loss(self, model: Any, rows: Tensor, wanted: Tensor, true: Tensor | None) -> Tensor:
        """The loss of (n, hidden) states: against the tokens `wanted` (n,), the teacher's states, or both."""
        logits = head_logits(model, rows)
        by_labels = F.cross_entropy(logits, wanted, reduction="sum")
        if true is None:
            return by_labels
        with torch.no_grad():
            truth = head_logits(self.teacher, true).log_softmax(-1)
        divergence = F.kl_div(logits.log_softmax(-1), truth, reduction="none", log_target=True).sum(-1)
        by_teacher = divergence[wanted != IGNORED].sum()
        return by_teacher if self.recipe.export.repair_on == "teacher" else (by_labels + by_teacher) / 2


def _teacher(merged: Path, device: torch.device) -> Any:
    """The unquantised model: float32 on a CPU, bfloat16 on a GPU."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    teacher = load_merged(merged, dtype=dtype, device=device)
    use_segments(teacher)
    return teacher


def eval_loss(model: Any, rows: Prepared, recipe: Recipe, pad_id: int) -> float:
    """Nats per trained token on the first eval rows, or on as many train rows where there are none."""
    chosen = rows.eval if len(rows.eval) else rows.train
    total, count = evaluate_loss(
        model,
        chosen.first(MOST_EVAL_ROWS),
        pad_id=pad_id,
        max_seq_len=recipe.data.max_seq_len,
        batch_size=recipe.batch_size,
    )
    return total / max(count, 1)
