"""Memory: a first estimate of training's peak from config.json alone, and the measured peak of this process."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.recipe import Recipe


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the peak of training, and what is counted. `parts` is in the order of the table."""

    parts: dict[str, int]
    peak_bytes: int
    trainable_parameters: int
    base_parameters: int


def estimate(recipe: Recipe) -> Estimate:
    """What training this recipe needs at its peak, from config.json alone. Raises ModelError."""
    raise RuntimeError("being written")


def reset_peak() -> None:
    """Start measuring the peak anew, where the system allows it."""
    raise RuntimeError("being written")


def peak_memory_bytes() -> int:
    """Highest memory since `reset_peak`: resident bytes of this process, or on CUDA the device's allocated bytes."""
    raise RuntimeError("being written")
