"""The plan stage: a recipe held against the real files, all problems at once, and what each stage of its run will need.

Reads config.json, headers, tokenizer and the first rows; loads no weights. `edgetune plan` shows it,
`edgetune run` begins with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune.errors import OutOfMemoryError, RecipeError
from edgetune.launch import launched
from edgetune.plan_checks import SCORED_ROWS, check_recipe
from edgetune.planning.durations import Duration, stage_durations, training_duration
from edgetune.planning.facts import Facts, StageName, find_facts
from edgetune.planning.stages import Stage, largest, plan_stages
from edgetune.progress import Progress
from edgetune.recipe import Recipe, parse_size

if TYPE_CHECKING:
    from edgetune.model.fit import Change
    from edgetune.model.memory import Estimate
    from edgetune.model.on_device import OnDevice

CHECKPOINTS = 3
"""Of adapter and optimizer that lie in a run folder at one time: two, and one that is being written."""


@dataclass(frozen=True)
class Plan:
    """A recipe that can be run: what its stages need, and counts over the first rows of each source."""

    recipe: Recipe
    """With a value for each "auto" that memory decides."""
    stages: tuple[Stage, ...]
    """Of a run, in their order."""
    facts: Facts
    """What they were planned from."""
    rows: Mapping[str, Mapping[str, int]]
    allowed_bytes: int | None
    """[budget] gpu_memory where there is one, else memory; on a CPU this process's part of it."""
    device: str
    """What is planned for: "cuda" where there is a gpu_memory, else this machine's."""
    unquantized_bytes: int | None
    """Peak of the run with the base as it is, where that fits too and the recipe has it in 4 bits."""
    labels: int
    on_device: OnDevice
    """The bundle that this becomes."""
    notes: tuple[str, ...] = ()
    """What its owner may not expect, a line each."""

    @property
    def estimate(self) -> Estimate:
        """Of its training."""
        return self.facts.training

    @property
    def largest(self) -> Stage:
        """The stage with the highest peak, which is the run's."""
        return largest(self.stages)

    @property
    def fits(self) -> bool:
        """Whether all stages are within the budget."""
        return self.allowed_bytes is None or self.largest.peak_bytes <= self.allowed_bytes


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
    bundle = expect_on_device(recipe)
    facts = find_facts(recipe, _estimate(recipe, rows, labels, kind), rows, kind=kind, bundle=bundle)
    found = Plan(recipe, plan_stages(facts), facts, rows, allowed, kind, None, labels, bundle, checked.notes)
    if allowed is None or recipe.model.quantization != "nf4":
        return found
    plain = _stages(found, with_values(recipe, {"model.quantization": "none"}))
    is_enough = largest(plain).peak_bytes <= allowed
    return dataclasses.replace(found, unquantized_bytes=largest(plain).peak_bytes if is_enough else None)


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
        lambda changed: largest(_stages(planned, changed)).peak_bytes,
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


def duration(planned: Plan) -> Duration | None:
    """How long training takes here, its rows counted and this machine measured for a moment; None where another device
    is planned for.
    """
    from edgetune.model.device import device

    return training_duration(planned.facts) if planned.device == device().type else None


def stage_seconds(planned: Plan, training: Duration | None) -> dict[StageName, float]:
    """About how long each stage of the run takes here; nothing where another device is planned for."""
    if training is None:
        return {}
    seconds = stage_durations(planned.facts, training)
    return {stage.name: seconds[stage.name] for stage in planned.stages}


def _stages(planned: Plan, recipe: Recipe) -> tuple[Stage, ...]:
    """Those of a plan's recipe with other values."""
    training = _estimate(recipe, planned.rows, planned.labels, planned.device)
    facts = find_facts(recipe, training, planned.rows, kind=planned.device, bundle=planned.on_device)
    return plan_stages(facts)


def _estimate(recipe: Recipe, rows: Mapping[str, Mapping[str, int]], labels: int, kind: str) -> Estimate:
    from edgetune.model.memory import estimate

    counts = rows["train"]
    share = counts.get("trained_tokens", 0) / max(1, counts["tokens"])
    longest = min(counts.get("longest", recipe.data.max_seq_len), recipe.data.max_seq_len)
    return estimate(recipe, on=kind, trained_share=share, labels=labels, sample_tokens=longest)


def refuse_over_budget(recipe: Recipe, planned: Plan) -> None:
    """Raises OutOfMemoryError if a stage needs more than the budget."""
    if not planned.fits:
        stage = planned.largest
        key = "gpu_memory" if recipe.budget.gpu_memory else "memory"
        sharing = launched().local_count if planned.device != "cuda" else 1
        each = f" in each of {sharing} processes" if sharing > 1 else ""
        raise OutOfMemoryError(
            f"{recipe.name}: {stage.name} needs about {stage.peak_bytes / 1024**2:,.1f} MiB{each}, budget.{key}"
            f" is {getattr(recipe.budget, key)}",
            cure="`edgetune plan RECIPE --fit NEW.toml` writes a recipe that fits; or raise the budget",
        )
