"""The plan stage: a recipe held against the real files, all problems at once, and what its training will need.

Reads config.json, headers, tokenizer and the first rows; loads no weights. `edgetune plan` shows it,
`edgetune run` begins with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune.errors import OutOfMemoryError, RecipeError
from edgetune.launch import launched
from edgetune.plan_checks import SCORED_ROWS, check_recipe
from edgetune.progress import Progress
from edgetune.recipe import Recipe, parse_size

if TYPE_CHECKING:
    from edgetune.model.fit import Change
    from edgetune.model.memory import Estimate
    from edgetune.model.on_device import OnDevice

COUNTED_ROWS = 100_000
"""Training rows that are counted at most, to tell how long a training takes."""
CHECKPOINTS = 3
"""Of adapter and optimizer that lie in a run folder at one time: two, and one that is being written."""


@dataclass(frozen=True)
class Plan:
    """A recipe that can be run: its estimate, and counts over the first rows of each source."""

    recipe: Recipe
    """With a value for each "auto" that memory decides."""
    estimate: Estimate
    rows: Mapping[str, Mapping[str, int]]
    allowed_bytes: int | None
    """[budget] gpu_memory where there is one, else memory; on a CPU this process's part of it."""
    device: str
    """What is planned for: "cuda" where there is a gpu_memory, else this machine's."""
    unquantized_bytes: int | None
    """Peak with the base as it is, where that fits too and the recipe has it in 4 bits."""
    labels: int
    on_device: OnDevice
    """The bundle that this becomes."""
    notes: tuple[str, ...] = ()
    """What its owner may not expect, a line each."""

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the budget."""
        return self.allowed_bytes is None or self.estimate.peak_bytes <= self.allowed_bytes


def plan(recipe: Recipe, *, scored_rows: int | None = SCORED_ROWS, progress: Progress | None = None) -> Plan:
    """Check all that the recipe names, then estimate; `scored_rows` are encoded of those that will be scored.

    Raises RecipeError with all problems, or the only one as it is.
    """
    from edgetune.model.device import device
    from edgetune.model.fit import settle, with_values
    from edgetune.model.memory import room_bytes
    from edgetune.model.on_device import expect_on_device

    budget = recipe.budget
    kind = "cuda" if budget.gpu_memory else device().type
    checked = check_recipe(recipe, on=kind, scored_rows=scored_rows, progress=progress)
    rows, labels = checked.rows, checked.labels
    allowed = parse_size(budget.gpu_memory or budget.memory)
    if allowed is not None and kind != "cuda":
        allowed //= launched().local_count
    recipe = settle(
        recipe,
        room_bytes(recipe.budget, kind),
        lambda asked: _estimate(asked, rows, labels, kind).peak_bytes,
        is_gpu=kind == "cuda",
    )
    needs = _estimate(recipe, rows, labels, kind)
    plain = None
    if allowed is not None and recipe.model.quantization == "nf4":
        plain = _estimate(with_values(recipe, {"model.quantization": "none"}), rows, labels, kind).peak_bytes
        plain = plain if plain <= allowed else None
    return Plan(recipe, needs, rows, allowed, kind, plain, labels, expect_on_device(recipe), checked.notes)


def fitted(recipe: Recipe, planned: Plan) -> tuple[Recipe, list[Change]]:
    """The recipe changed as little as its budget asks for, and the changes; "auto" in it is decided.

    Raises OutOfMemoryError, RecipeError.
    """
    from edgetune.model.fit import fit
    from edgetune.model.memory import room_bytes

    if planned.allowed_bytes is None:
        raise RecipeError(
            f"{recipe.name}: there is no budget to fit", cure="give --gpu-memory, or set budget.gpu_memory or memory"
        )
    return fit(
        planned.recipe,
        room_bytes(recipe.budget, planned.device),
        lambda changed: _estimate(changed, planned.rows, planned.labels, planned.device).peak_bytes,
        is_gpu=planned.device == "cuda",
    )


def disk_bytes(planned: Plan) -> int:
    """About what a run of the recipe writes: checkpoints, merged model, bundle, and the ledger's graphs."""
    from edgetune.bundle.variants import MOST_FLOAT_BYTES
    from edgetune.lora.merge import merged_dtype

    base, trained = planned.estimate.base_parameters, planned.estimate.trainable_parameters
    merges = 2 if planned.recipe.export.merge_base == "auto" else 1
    merged = merges * base * merged_dtype(base).itemsize
    as_floats = 4 * base if 4 * base <= MOST_FLOAT_BYTES else 0
    return merged + as_floats + 2 * planned.on_device.bundle_bytes + CHECKPOINTS * trained * 3 * 4


@dataclass(frozen=True)
class Duration:
    """How long training will take here, about."""

    rows: int
    is_all: bool
    """False: there are more rows than were counted, and it takes longer."""
    tokens: int
    """Of the whole training."""
    steps: int
    tokens_per_s: float

    @property
    def seconds(self) -> float:
        """Of training steps; evaluations come on top."""
        return self.tokens / self.tokens_per_s


def duration(planned: Plan) -> Duration | None:
    """Count the training rows and measure this machine for a moment; None where another device is planned for."""
    from edgetune.data.prepare import examples
    from edgetune.model.device import device
    from edgetune.model.duration import training_tokens_per_s
    from edgetune.train.schedule import optimizer_steps

    recipe, counts = planned.recipe, planned.rows["train"]
    if planned.device != device().type:
        return None
    most = min(recipe.data.max_train_rows or COUNTED_ROWS, COUNTED_ROWS)
    rows = sum(1 for _ in itertools.islice(examples(recipe, "train"), most))
    is_all = rows < COUNTED_ROWS
    rows *= 1 + recipe.data.swapped_copies
    length = min(counts["tokens"] / counts["rows"], recipe.data.max_seq_len)
    is_packed = recipe.data.packing and not recipe.is_idle("data.packing")
    a_sequence = max(1.0, recipe.data.max_seq_len / length) if is_packed else 1.0
    an_epoch, steps = optimizer_steps(recipe, math.ceil(rows / a_sequence))
    speed = training_tokens_per_s(
        recipe,
        trained_share=counts.get("trained_tokens", 0) / max(1, counts["tokens"]),
        sample_tokens=round(length),
    )
    return Duration(rows, is_all, round(steps / an_epoch * rows * length), steps, speed)


def _estimate(recipe: Recipe, rows: Mapping[str, Mapping[str, int]], labels: int, kind: str) -> Estimate:
    from edgetune.model.memory import estimate

    counts = rows["train"]
    share = counts.get("trained_tokens", 0) / max(1, counts["tokens"])
    longest = min(counts.get("longest", recipe.data.max_seq_len), recipe.data.max_seq_len)
    return estimate(recipe, on=kind, trained_share=share, labels=labels, sample_tokens=longest)


def refuse_over_budget(recipe: Recipe, planned: Plan) -> None:
    """Raises OutOfMemoryError if training needs more than its budget."""
    if not planned.fits:
        key = "gpu_memory" if recipe.budget.gpu_memory else "memory"
        sharing = launched().local_count if planned.device != "cuda" else 1
        each = f" in each of {sharing} processes" if sharing > 1 else ""
        raise OutOfMemoryError(
            f"{recipe.name}: training needs about {planned.estimate.peak_bytes / 1024**2:,.1f} MiB{each}, budget.{key}"
            f" is {getattr(recipe.budget, key)}",
            cure="`edgetune plan RECIPE --fit NEW.toml` writes a recipe that fits; or raise the budget",
        )
