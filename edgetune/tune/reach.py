"""Which objectives a key can change: a key that can change none is refused before the first trial, and so is an
objective that no key of the space changes. Tables of names; tests/tune/test_reach.py holds them against the estimates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgetune.recipe import CALIBRATED, Recipe

ON_DEVICE = frozenset({"export.precision", "export.block_size", "export.symmetric", "export.head_bits"})
"""What decides a bundle's estimated bytes, memory and speed."""
ROUNDING = ON_DEVICE | {"export.accuracy_level", "export.int8_layers", "export.merge_base", "export.method"}
"""What is left of [export] where weights are rounded as they are."""
FOR_ROWS = frozenset({"export.calibration_rows", "export.repair_steps", "export.repair_on"})
"""What [export] does on training rows."""
SCORED: Mapping[str, frozenset[str]] = {"trained": frozenset(), "deployed": ROUNDING, "exported": ROUNDING | FOR_ROWS}
"""tune.score_of -> the keys of [export] that have a part in the score and the loss."""
SAME_MODEL = frozenset(
    {"train.fused_loss", "train.gradient_checkpointing", "train.offload_activations", "train.use_liger_kernel"}
)
"""What changes the cost of a training, and nothing that it learns."""
IN_TRAINING = frozenset(
    {
        "model.quantization",
        "model.double_quantization",
        "model.embedding_quantization",
        "model.compute_dtype",
        "data.max_seq_len",
        "data.loss_on",
        "classify.head",
        "lora.r",
        "lora.dropout",
        "lora.target_modules",
        "lora.use_dora",
        "lora.train_embeddings",
        "train.batch_size",
        "train.optimizer",
        "train.divergence_restarts",
        "train.fused_loss",
        "train.gradient_checkpointing",
        "train.offload_activations",
    }
)
"""What decides the planned peak of a training."""
ESTIMATED: Mapping[str, frozenset[str]] = {
    "bundle_bytes": ON_DEVICE,
    "device_bytes": ON_DEVICE,
    "tokens_per_s": ON_DEVICE,
    "train_bytes": IN_TRAINING,
}
"""Objectives that are worked out from the recipe -> the keys that they depend on."""
MEASURED: Mapping[str, tuple[str, ...]] = {"export.method": ("auto", *CALIBRATED), "export.merge_base": ("auto",)}
"""Choices that are the same as another one where no row is looked at."""
NEEDS: Mapping[str, tuple[str, ...]] = {"export.repair_on": ("export.repair_steps",)}
"""Keys that do nothing while all these are 0."""


def changes(name: str, objective: str, score_of: str) -> bool:
    """Whether a key like "export.method" can change an objective of [tune]."""
    if objective in ESTIMATED:
        return name in ESTIMATED[objective]
    return name in SCORED[score_of] if name.startswith("export.") else name not in SAME_MODEL


def useless(recipe: Recipe, space: Mapping[str, Any]) -> list[str]:
    """What in a space, of items with `points`, can have no effect: an objective that is the same everywhere, or keys
    that change none; a line each, with its cure.
    """
    table = recipe.tune
    constant = [
        objective
        for objective in table.objectives
        if not any(changes(name, objective, table.score_of) for name in space)
    ]
    if any(objective in ESTIMATED for objective in constant):
        return _constant(constant, table.score_of)
    reasons = {name: _idle_reason(name, item.points(), recipe, space) for name, item in space.items()}
    idle = [f'tune.space."{name}": {reason}' for name, reason in reasons.items() if reason]
    return idle or _constant(constant, table.score_of)


def _constant(objectives: Iterable[str], score_of: str) -> list[str]:
    found = []
    for objective in objectives:
        keys = sorted(ESTIMATED.get(objective) or SCORED[score_of] or {"train.learning_rate", "train.epochs"})
        found.append(
            f'tune.objectives: "{objective}" is the same in the whole space; leave it out, or search {keys[0]}, '
            f"{keys[1]} or the like too"
        )
    return found


def _idle_reason(name: str, choices: Iterable[Any], recipe: Recipe, space: Mapping[str, Any]) -> str | None:
    """Why a key of the space has no effect on any objective, and what would give it one; None where it has."""
    table = recipe.tune
    if not any(changes(name, objective, table.score_of) for objective in table.objectives):
        return _without_effect(name, recipe)
    wanting = [choice for choice in choices if choice in MEASURED.get(name, ())] if table.score_of == "deployed" else []
    if wanting:
        return f'"{wanting[0]}" looks at rows, which score_of = "deployed" does not; take "exported"'
    if name in FOR_ROWS and "export.precision" not in space and not recipe.export.needs_rows:
        return f'has no effect on export.precision = "{recipe.export.precision}"; leave it out'
    is_uncalibrated = "export.method" not in space and recipe.export.method not in MEASURED["export.method"]
    if name == "export.calibration_rows" and is_uncalibrated:
        return f'has no effect on export.method = "{recipe.export.method}"; leave it out'
    needs = NEEDS.get(name, ())
    if needs and not any(key in space or getattr(recipe.export, key.partition(".")[2]) for key in needs):
        return f"has no effect while {needs[0]} is 0; raise that, or search it too"
    return None


def _without_effect(name: str, recipe: Recipe) -> str:
    table = recipe.tune
    if name in SAME_MODEL:
        more = ', or add the objective "train_bytes"' if "train_bytes" not in table.objectives else ""
        return f"changes what a training costs, not what it learns; leave it out{more}"
    if all(objective in ESTIMATED for objective in table.objectives):
        return f'changes no objective ({", ".join(table.objectives)}); leave it out, or add the objective "score"'
    others = [f'take "{how}", or ' for how, keys in SCORED.items() if name in keys]
    return f'has no effect on score_of = "{table.score_of}"; {others[0] if others else ""}leave it out'
