"""Candidates of `edgetune export-best`: what a bundle can be, which others it beats, and which one is taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from edgetune.errors import RunError
from edgetune.progress import Progress
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.methods import method_of
from edgetune.quantize.precisions import BLOCK_SIZES, STORED_SCALE_BYTES
from edgetune.recipe import Recipe, parse_size
from edgetune.runtime.grid import Grid


@dataclass(frozen=True)
class Measured:
    """What a bundle is worth on the eval rows, and what it costs on this machine."""

    score: float | None
    device_loss: float
    """Nats per trained token, or per text, by the device's own runtime."""
    peak_bytes: int
    tokens_per_s: float | None = None
    latency_s: float | None = None
    """Of a text, where a bundle labels and writes none."""


@dataclass(frozen=True)
class Point:
    """One candidate. Loss in nats per trained token (or text) on the eval rows, in torch, before repair."""

    block_size: int
    symmetric: bool
    head_bits: int | None
    """None where the head stays as it is: a classifier's."""
    calibrated: bool
    """GPTQ on training rows, or rounded to the nearest."""
    int8_layers: tuple[str, ...]
    loss: float
    size_bytes: int
    """Of all weights."""
    on_front: bool = False
    """No other beats it, see `mark_front`."""
    score: float | None = None
    """As Measured, of the points that were built."""
    device_loss: float | None = None
    tokens_per_s: float | None = None
    latency_s: float | None = None
    peak_bytes: int | None = None

    @property
    def grid(self) -> Grid:
        """Of its layers."""
        return Grid(4, self.block_size, self.symmetric)

    @property
    def settings(self) -> dict[str, Any]:
        """What [export] must say for it."""
        found: dict[str, Any] = {"block_size": self.block_size, "symmetric": self.symmetric}
        if self.head_bits is not None:
            found |= {"head_bits": self.head_bits, "int8_layers": self.int8_layers}
        return {**found, "method": "gptq" if self.calibrated else "search"}

    @property
    def name(self) -> str:
        """In a few words."""
        parts = [f"block {self.block_size}", "symmetric" if self.symmetric else "asymmetric"]
        parts += [f"head {self.head_bits}"] if self.head_bits is not None else []
        parts += ["GPTQ" if self.calibrated else "nearest"]
        return ", ".join(parts) + (f", {len(self.int8_layers)} in int8" if self.int8_layers else "")

    @property
    def found_loss(self) -> float:
        """On the device where it was built, else in torch."""
        return self.loss if self.device_loss is None else self.device_loss

    @property
    def costs(self) -> tuple[float, ...]:
        """All that should be small, of a point that was built: score (negative), loss, bytes, time."""
        seconds = 1 / self.tokens_per_s if self.tokens_per_s else self.latency_s
        return (-(self.score or 0.0), self.found_loss, self.size_bytes, seconds or 0.0)


def mark_front(points: Sequence[Point]) -> list[Point]:
    """The points, with those marked that no other beats or equals in all: loss and bytes; of two that were built score,
    loss, bytes and speed.
    """
    return [dataclasses.replace(point, on_front=not any(_beats(other, point) for other in points)) for point in points]


def _beats(other: Point, point: Point) -> bool:
    """Whether one point is no worse in anything that is known of both; nothing that was not built beats what was."""
    is_built = point.peak_bytes is not None
    if is_built and other.peak_bytes is None:
        return False
    one, two = ((item.costs if is_built else (item.loss, item.size_bytes)) for item in (other, point))
    return one != two and all(a <= b for a, b in zip(one, two, strict=True))


def evenly(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of the points, evenly from the first to the last."""
    if len(points) <= most:
        return list(points)
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]


def own_point(points: Sequence[Point], recipe: Recipe) -> Point | None:
    """The point that is the recipe's own [export]; None where that rounds as no candidate does."""
    table = dataclasses.replace(recipe.export, method=method_of(recipe.export))
    return next((p for p in points if all(getattr(table, key) == value for key, value in p.settings.items())), None)


def choose(points: Sequence[Point], recipe: Recipe, own: Point | None = None) -> tuple[Point, str]:
    """The measured point with the least loss that fits [budget], and the reason in a sentence. Raises RunError.

    `own`: the recipe's own settings. They are taken unless another has no more loss; and none that is as large or
    larger is taken that scores lower than they.
    """
    memory, least = parse_size(recipe.budget.device_memory), recipe.budget.min_tokens_per_s
    built = [point for point in points if point.peak_bytes is not None]
    fitting = [point for point in built if fits(point, memory, least)]
    asked = [f"at most {recipe.budget.device_memory} on the device"] if memory else []
    asked += [f"at least {least:,.0f} tokens/s"] if least else []
    if not fitting:
        nearest = min(built, key=lambda point: point.peak_bytes or 0)
        raise RunError(
            f"no candidate has {' and '.join(asked)}: the smallest, {nearest.name}, takes "
            f"{(nearest.peak_bytes or 0) / 2**20:,.0f} MiB and writes {nearest.tokens_per_s or 0:,.0f} tokens/s",
            cure="raise budget.device_memory, lower budget.min_tokens_per_s, or fine-tune a smaller base",
        )
    allowed = [point for point in fitting if own not in fitting or not _scores_below(point, own)]
    best = min(allowed, key=lambda point: (point.found_loss, point.size_bytes, point != own))
    reason = f"least loss ({best.found_loss:.4f}) of {len(fitting)} measured candidates"
    return best, f"{reason} with {' and '.join(asked)}" if asked else reason


def _scores_below(point: Point, own: Point | None) -> bool:
    """Whether the recipe's own settings score higher in no more bytes."""
    return own is not None and own.size_bytes <= point.size_bytes and (own.score or 0.0) > (point.score or 0.0)


def fits(point: Point, memory: int | None, least: float | None) -> bool:
    """Whether a measured point keeps within a budget."""
    return (memory is None or (point.peak_bytes or 0) <= memory) and (
        least is None or (point.tokens_per_s or 0.0) >= least
    )


def grids() -> list[Grid]:
    """The grids of int4 that are tried."""
    return [Grid(4, size, symmetric) for size, symmetric in product(BLOCK_SIZES, (False, True))]


def as_asked(recipe: Recipe, point: Point) -> Recipe:
    """The recipe with a point's settings in [export]."""
    return dataclasses.replace(recipe, export=dataclasses.replace(recipe.export, **point.settings))


def told(tell: Progress, point: Point) -> Point:
    """The point, after a line about it."""
    text = f"{point.name}: loss {point.loss:.4f}, {point.size_bytes / 2**20:.2f} MiB"
    tell({"stage": "search", "message": text})
    return point


def stored_bytes(matrix: QuantizedMatrix) -> int:
    """Bytes of a matrix in the file: integers, scales, zero points."""
    zeros = 0 if matrix.zero_points is None else matrix.zero_points.numel()
    return matrix.packed.numel() + STORED_SCALE_BYTES * matrix.scales.numel() + zeros
