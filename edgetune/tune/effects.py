"""Differences between trainings with the same seeds: means, their errors, and how large they are beside the noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effect:
    """How much better one recipe is than another, seed by seed; above 0 is better."""

    mean: float
    low: float | None
    high: float | None
    """The interval of CONFIDENCE by Student's t over the seeds; None of one seed."""
    seeds: int
    deviation: float | None
    """Standard deviation of the differences over the seeds."""

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_effect(ours: Sequence[float], theirs: Sequence[float], *, is_loss: bool) -> Effect:
    """The effect of `ours` against `theirs`, values of the same seeds in the same order. Needs one pair at least."""
    sign = -1.0 if is_loss else 1.0
    differences = [sign * (one - other) for one, other in zip(ours, theirs, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Effect(mean, None, None, count, None)
    deviation = statistics.stdev(differences)
    reach = _t_quantile(count - 1) * deviation / math.sqrt(count)
    return Effect(mean, mean - reach, mean + reach, count, deviation)


def noise(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups of equal recipes, pooled: what another seed alone changes. None without two."""
    squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    return math.sqrt(squares / freedom) if freedom else None


def _t_quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats has it too, and takes seconds to import

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
