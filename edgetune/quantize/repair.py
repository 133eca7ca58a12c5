"""Repair of a rounded model on the user's rows: short training of scales, norms and biases, the integers frozen.

In the flow: merged model's matrices on the grid -> this loop -> the same integers with better scales, as they are
shipped. Kept is what has the least eval loss among what is near the merged model, or no further from it than rounding
alone has gone, which is itself among the choices: repair wins back what rounding lost, and does not train on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgetune.data.encode import NOT_TRAINED
from edgetune.data.prepare import Prepared
from edgetune.errors import DivergedError
from edgetune.model.base import load_merged
from edgetune.model.heap import lean_heap
from edgetune.model.inference import find_place
from edgetune.model.memory import give_back_memory
from edgetune.model.weights import Place
from edgetune.progress import Progress
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.load import load_on_grid
from edgetune.quantize.repairable import checkpoint_layers, repaired
from edgetune.quantize.truth import EvalRows, Truth
from edgetune.recipe import BudgetTable, ModelTable, Recipe, TrainTable
from edgetune.train.divergence import Diverged
from edgetune.train.fit import Position, Training, fit
from edgetune.train.generation import Generation
from edgetune.train.loss import chunks, head_logits, trained_states, use_segments
from edgetune.train.schedule import learning_rate_share

LEARNING_RATE = 1e-3
"""The highest: a step moves a scale by about so much of it, norms and biases as they are."""
EVALUATIONS = 4
NEAR = 0.005
"""Nats a token: what is nearer to the merged model than that is near. Roundings to 4 bits that keep all of the gain lie
below and above it (benchmarks/README.md, "Does the fine-tune survive?")."""
UNCONVERGED = 0.2
"""Share by which scales alone lower the merged model's eval loss where its weights had much left to learn: set by
judgement; a converged fine-tune gains a few hundredths."""
WARMUP_RATIO, LEAST_SHARE = 0.05, 0.05
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Look:
    """A model on the grid, seen on the eval rows after so many steps."""

    step: int
    loss: float
    """Nats per trained token."""
    kl: float
    """Divergence from the merged model, in nats a token."""


def best_of(curve: Sequence[Look]) -> Look:
    """The look with the least loss among those NEAR the merged model, or no further from it than the first; of equal
    ones the earliest.
    """
    near = [look for look in curve if look.kl <= max(curve[0].kl, NEAR)]
    return min(near, key=lambda look: (look.loss, look.step))


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
    loss_merged: float
    """Of the merged model, before it was rounded."""
    kl_before: float
    kl_after: float
    """Divergence from the merged model, in nats a token."""
    curve: tuple[Look, ...] = field(default=())
    epochs_more: float | None = None
    """Where labels would still win much: how many epochs of training that took, at least; None where they do not."""

    def to_json(self) -> dict[str, Any]:
        """The numbers, for quantized.json."""
        names = ("loss_merged", "loss_before", "loss_after", "kl_before", "kl_after", "best_step", "wall_s")
        numbers = {name: getattr(self, name) for name in (*names, "epochs_more")}
        return {**numbers, "curve": [(look.step, look.loss, look.kl) for look in self.curve]}


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
    scale, activations in float32, of one layer and the inputs of the others with train.gradient_checkpointing; before
    that the merged model whole, with a teacher all the time.

    Raises DivergedError.
    """
    table, started = recipe.export, time.monotonic()
    if progress:
        progress({"stage": "repair", "message": f"repairing in {table.repair_steps} steps"})
    torch.manual_seed(recipe.train.seed)
    target = Target.of(merged, rows, recipe, pad_id, progress)
    give_back_memory()
    model = load_for_loss(merged, matrices, rounds_inputs=table.accuracy_level == 4)
    if recipe.gradient_checkpointing:
        checkpoint_layers(model)
    data = RepairData(recipe, rows, pad_id, target.teacher)
    return train_on_grid(model, data, target.truth, matrices, started=started, progress=progress)


def train_on_grid(
    model: Any,
    data: Any,
    truth: Any,
    matrices: Mapping[str, QuantizedMatrix],
    *,
    started: float,
    progress: Progress | None = None,
) -> Repair:
    """Train what `make_repairable` left open in a model, on the data's recipe, and keep the best look at it.

    `truth`: the merged model on eval rows, a `Truth` or what has its `loss`, `rows.loss` and `divergence`; `started`:
    by time.monotonic. Raises DivergedError.
    """
    recipe = data.recipe
    table, trained = recipe.export, [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = Training(
        model=model,
        trained=trained,
        optimizer=torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0),
        data=data,
        steps=table.repair_steps,
        batch_size=recipe.batch_size,
        accumulation=recipe.train.gradient_accumulation_steps,
        learning_rate=partial(_learning_rate, steps=table.repair_steps),
    )
    with lean_heap(recipe.gradient_checkpointing):
        best, curve = _train_best(training, truth, progress)
    first, kept = curve[0], best_of(curve)
    return Repair(
        matrices={**matrices, **best[0]},
        vectors=best[1],
        loss_before=first.loss,
        loss_after=kept.loss,
        best_step=kept.step,
        wall_s=time.monotonic() - started,
        loss_merged=truth.loss,
        kl_before=first.kl,
        kl_after=kept.kl,
        curve=curve,
        epochs_more=_epochs_more(curve, truth.loss, data),
    )


def _epochs_more(curve: Sequence[Look], loss_merged: float, data: Any) -> float | None:
    """What the steps with the least loss were in epochs, where it is far below the merged model's; None where not."""
    least = min(curve, key=lambda look: (look.loss, look.step))
    if least.loss >= (1 - UNCONVERGED) * loss_merged:
        return None
    rows = data.recipe.batch_size * data.recipe.train.gradient_accumulation_steps
    return least.step * rows / len(data.epoch(0))


def longer(table: TrainTable, more: float) -> str:
    """The key that trains longer, where `more` epochs would still have lowered the loss much for the scales alone."""
    if table.max_steps is not None:
        return f"train.max_steps={2 * table.max_steps}"
    return f"train.epochs={table.epochs + max(1, math.ceil(more)):g}"


@dataclass(frozen=True)
class Target:
    """What repair aims at."""

    truth: Truth
    teacher: Any
    """The merged model, where repair learns from it; else None, and its memory is free again."""

    @classmethod
    def of(cls, merged: Path, rows: Prepared, recipe: Recipe, pad_id: int, progress: Progress | None = None) -> Target:
        """Of a merged folder, by [export] repair_on."""
        teacher = _teacher(merged, recipe.budget, progress)
        truth = Truth.measure(teacher, EvalRows.of(rows, recipe, pad_id))
        return cls(truth, None if recipe.export.repair_on == "labels" else teacher)


def _train_best(training: Training, truth: Any, progress: Progress | None) -> tuple[Any, tuple[Look, ...]]:
    """What the model held at the best look (see `best_of`), and all looks, step 0 first."""
    curve, steps = [_look(0, training.model, truth)], training.steps
    best = repaired(training.model)
    try:
        for step in fit(training, Position()):
            if progress:
                progress({"stage": "repair", "step": step.number, "steps": steps, "loss": step.loss})
            if step.number * EVALUATIONS % steps < EVALUATIONS:
                curve.append(_look(step.number, training.model, truth))
                if best_of(curve) is curve[-1]:
                    best = repaired(training.model)
    except Diverged as error:
        raise DivergedError(f"repair, step {error.step}: {error.reason}", cure="set export.repair_steps = 0") from None
    return best, tuple(curve)


def _look(step: int, model: Any, truth: Any) -> Look:
    return Look(step, truth.rows.loss(model), truth.divergence(model))


def _learning_rate(step: int, *, steps: int) -> float:
    """Of step 1..steps: a short warm-up, then down in a straight line."""
    share = learning_rate_share(step, steps, schedule="linear", warmup_ratio=WARMUP_RATIO, least=LEAST_SHARE)
    return LEARNING_RATE * share


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
                truth, _ = trained_states(self.teacher, batch.to(self.teacher.device))
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
            truth = head_logits(self.teacher, true).log_softmax(-1).to(logits.device)
        divergence = F.kl_div(logits.log_softmax(-1), truth, reduction="none", log_target=True).sum(-1)
        by_teacher = divergence[wanted != NOT_TRAINED].sum()
        return by_teacher if self.recipe.export.repair_on == "teacher" else (by_labels + by_teacher) / 2


def _teacher(merged: Path, budget: BudgetTable, progress: Progress | None) -> Any:
    """The unquantised model: bfloat16 on a GPU that has room for it by [budget], else on the CPU, there float32."""
    place = find_place(ModelTable(str(merged), quantization="none"), budget, name=str(merged))
    if place.note and progress:
        progress({"stage": "repair", "message": place.note})
    is_lean = place.device.type != "cpu" or place.table.compute_dtype == "bfloat16"
    dtype = torch.bfloat16 if is_lean else torch.float32
    teacher = load_merged(merged, dtype=dtype, device=place.device)
    use_segments(teacher)
    return teacher


def eval_loss(model: Any, rows: Prepared, recipe: Recipe, pad_id: int) -> float:
    """Nats per trained token on the first eval rows, or on as many train rows where there are none."""
    return EvalRows.of(rows, recipe, pad_id).loss(model)
