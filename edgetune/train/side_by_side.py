"""Several adapters trained side by side: one frozen base, one pass over the data, each adapter as its recipe says.

In the flow: one recipe and its variants -> the parts of each training, made as for one alone -> steps in which every
micro-batch passes the base once for all adapters -> for each variant a run folder like that of a training alone.
Restarts, plateaus, early stopping and checkpoints are left out: a sweep that was stopped begins again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from edgetune.data.pack import Batch
from edgetune.errors import DivergedError, OutOfMemoryError, RecipeError
from edgetune.model.base import load_base
from edgetune.model.device import autocast
from edgetune.model.lend import lent
from edgetune.model.memory import is_out_of_memory, peak_memory_bytes, reset_peak
from edgetune.progress import Progress, silent
from edgetune.recipe import Recipe
from edgetune.train import segments
from edgetune.train.batches import collate_rows, in_parts, packed_rows
from edgetune.train.fit import rows_of_steps
from edgetune.train.fused import fuse
from edgetune.train.generation import Generation
from edgetune.train.head_loss import can_fuse, fused_cross_entropy, head_weight, logit_map
from edgetune.train.loss import trained_states
from edgetune.train.result import TrainResult
from edgetune.train.side import Side, finish, make_step, prepare
from edgetune.train.side_linear import Sharing, SideLinear, branch_of
from edgetune.train.variants import check_side_by_side

ROWS_IN_FLIGHT = 2
"""How many times the tokens of a training alone are passed at once: bounds memory."""
LEAST_TOKENS = 1024
"""So many tokens may be passed at once however small a micro-batch is: they take less than a base and Python do."""


@dataclass(frozen=True)
class SideBySide:
    """What a sweep found: the result of each adapter by its name, None of one that diverged, and what all cost."""

    results: Mapping[str, TrainResult | None]
    peak_bytes: int
    wall_s: float
    """Of it all, loading and evaluations included."""
    train_s: float
    """In training steps."""


def train_side_by_side(
    variants: Mapping[str, Recipe],
    folder: Path,
    *,
    rows_in_flight: float = ROWS_IN_FLIGHT,
    base: Any = None,
    progress: Progress | None = None,
) -> SideBySide:
    """Train recipes that differ in keys of `VARIED` alone; each leaves folder/<name> as a training alone does.

    The same data, draws and steps as alone: results are the same but for the order of sums. Only where rows of a
    micro-batch are passed one after another, to keep within `rows_in_flight` times its tokens, masks of dropout are
    drawn for each piece; where that is not enough, adapters pass in groups.
    Raises RecipeError for recipes that cannot go side by side, OutOfMemoryError.
    """
    started, notify = time.perf_counter(), progress or silent
    first = next(iter(variants.values()))
    check_side_by_side(first)
    reset_peak()
    try:
        base = load_base(first.model) if base is None else base
        sides = [prepare(name, recipe, folder, base, notify) for name, recipe in variants.items()]
        with lent(base):
            sharing = _join(base, sides)
            cost = _run(base, sides, sharing, rows_in_flight, notify)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{len(variants)} adapters side by side ran out of memory",
            cure="vary fewer values, or lower data.max_seq_len",
        ) from None
    peak, wall_s = peak_memory_bytes(), time.perf_counter() - started
    results = {side.name: finish(side, base, {**cost, "peak_bytes": peak, "wall_s": wall_s}) for side in sides}
    return SideBySide(results, peak, wall_s, cost["train_s"])


def _join(base: Any, sides: Sequence[Side]) -> Sharing:
    """Put all adapters into the base, whose attention becomes that of a training."""
    sharing = Sharing(generators=[side.generator for side in sides])
    for path in sides[0].layers:
        branches = [branch_of(side.layers[path]) for side in sides]
        base.set_submodule(path, SideLinear(sides[0].layers[path].get_base_layer(), branches, sharing))
    sides[0].parts.task.complete(base)
    if base.config._attn_implementation != segments.NAME or not can_fuse(base.get_output_embeddings()):
        raise RecipeError(
            f"{sides[0].parts.recipe.name}: adapters of this architecture do not go side by side",
            cure="train them one by one",
        )
    fuse(base)
    base.train()
    return sharing


def _run(base: Any, sides: Sequence[Side], sharing: Sharing, rows_in_flight: float, notify: Progress) -> dict[str, Any]:
    """All optimizer steps of all adapters; the seconds in steps and tokens of one adapter, by TrainResult's names."""
    parts = sides[0].parts
    training, started = parts.training, time.perf_counter()
    rows = rows_of_steps(parts.task, training.step_rows, 0, 0)
    cost: dict[str, Any] = {"train_s": 0.0, "tokens": 0, "trained_tokens": 0}
    for step in range(1, parts.steps + 1):
        step_started = time.perf_counter()
        micro_batches = in_parts(next(rows)[-1], training.batch_size)
        most = len(micro_batches[0])
        size, groups = split(most, len(sides), rows_in_flight * most, parts.recipe.data.max_seq_len)
        batches = [parts.task.collate(part) for taken in micro_batches for part in in_parts(taken, size)]
        losses = _add_gradients(base, groups, sharing, batches)
        trained = sum(batch.trained for batch in batches)
        for side, loss in zip(sides, losses, strict=True):
            make_step(side, step, loss, trained)
        cost["train_s"] += time.perf_counter() - step_started
        cost["tokens"] += sum(batch.read for batch in batches)
        cost["trained_tokens"] += trained
        if step % parts.eval_steps == 0 or step == parts.steps:
            _evaluate(base, sides, sharing, step, notify)
        spent_s = time.perf_counter() - started
        event = {"stage": "train", "step": step, "steps": parts.steps, "loss": min(losses)}
        notify({**event, "memory_bytes": peak_memory_bytes(), "left_s": spent_s / step * (parts.steps - step)})
    return cost


def split(rows: int, adapters: int, rows_in_flight: float, max_seq_len: int) -> tuple[int, list[slice]]:
    """How a micro-batch of so many rows passes the base: rows at once, and the adapters of each pass."""
    at_once = max(1, int(max(rows_in_flight, LEAST_TOKENS / max_seq_len)))
    a_pass = min(adapters, at_once)
    groups = [slice(at, min(at + a_pass, adapters)) for at in range(0, adapters, a_pass)]
    return min(rows, at_once // a_pass), groups


def _add_gradients(base: Any, groups: Sequence[slice], sharing: Sharing, batches: Sequence[Any]) -> list[float]:
    """Forward and backward pass of one step for all adapters; each one's mean loss."""
    trained = max(1, sum(batch.trained for batch in batches))
    totals = torch.zeros(groups[-1].stop, device=base.device)
    for batch in batches:
        for group in groups:
            losses = _losses(base, group, sharing, batch.to(base.device)) / trained
            losses.sum().backward()  # adapters share no weight that is trained, so each gets the gradient of its loss
            totals[group] += losses.detach()
    return [float(loss) for loss in totals]


def _losses(base: Any, group: slice, sharing: Sharing, batch: Batch) -> Tensor:
    """Summed loss of each adapter of a group on one batch, (adapters,) float32."""
    adapters = group.stop - group.start
    sharing.active = group
    sharing.tokens = batch.read
    sharing.padded = segments.round_up(batch.read)
    every = Batch(*(getattr(batch, item.name).repeat(adapters, 1) for item in dataclasses.fields(batch)))
    with autocast(base):
        states, targets = trained_states(base, every)
        weight, mapped = head_weight(base.get_output_embeddings()), logit_map(base.config)
        pairs = zip(states.chunk(adapters), targets.chunk(adapters), strict=True)
        return torch.stack([fused_cross_entropy(part, weight, wanted, mapped) for part, wanted in pairs])


@torch.no_grad()
def _eval_losses(base: Any, sides: Sequence[Side], sharing: Sharing, rows: Any) -> list[float]:
    """Mean loss of every adapter over eval rows, dropout off."""
    recipe = sides[0].parts.recipe
    task = cast(Generation, sides[0].parts.task)
    totals, count = torch.zeros(len(sides), device=base.device), 0
    sharing.is_dropping = False
    in_flight = ROWS_IN_FLIGHT * recipe.batch_size
    size, groups = split(recipe.batch_size, len(sides), in_flight, recipe.data.max_seq_len)
    for numbers in in_parts(packed_rows(rows, max_seq_len=recipe.data.max_seq_len), size):
        batch = collate_rows(rows, numbers, pad_id=task.pad_id).to(base.device)
        for group in groups:
            totals[group] += _losses(base, group, sharing, batch)
        count += batch.trained
    sharing.is_dropping = True
    return [total / max(1, count) for total in totals.tolist()]


def _evaluate(base: Any, sides: Sequence[Side], sharing: Sharing, step: int, notify: Progress) -> None:
    """Eval loss of every adapter; weights that are the best so far are kept."""
    parts = sides[0].parts
    rows = parts.task.prepared.eval
    losses = _eval_losses(base, sides, sharing, rows if parts.eval_sample is None else parts.eval_sample)
    for side, loss in zip(sides, losses, strict=True):
        side.run_dir.append_event(
            {"stage": "train", "step": step, "eval_loss": loss, "train_loss": side.train_loss, "loss": side.train_loss}
        )
        if math.isfinite(loss) and not side.has_diverged and (side.best_loss is None or loss < side.best_loss):
            side.best_loss, side.best_step = loss, step
            side.best = [parameter.detach().clone() for parameter in side.parts.trained]
        side.train_tokens = 0
    if parts.eval_sample is not None and step == parts.steps:
        for side, loss in zip(sides, _eval_losses(base, sides, sharing, rows), strict=True):
            side.whole_loss = loss if side.best_step == step else None
    found = ", ".join(f"{side.name} {side.best_loss:.4f}" for side in sides if side.best_loss is not None)
    notify({"stage": "train", "message": f"step {step}: best eval losses: {found}"})


def refuse_if_all_diverged(found: SideBySide) -> None:
    """Raises DivergedError if no adapter is left."""
    if not any(found.results.values()):
        raise DivergedError("every adapter has diverged", cure="lower the learning rates")
