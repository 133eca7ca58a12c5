"""Gain kept: how much of what fine-tuning gained is left in the bundle. Numbers in, numbers out.

In the flow: scores or losses of the same rows from base, fine-tune and bundle -> their share, with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgetune.evaluate.resample import Bootstrap


@dataclass(frozen=True)
class Gain:
    """Gain kept: (bundle - base) / (fine-tune - base), of a mean over rows; 1.0 when nothing was lost."""

    kept: float | None
    """None where these rows do not show that the fine-tune is better than the base: no share can be told."""
    interval: tuple[float, float] | None
    is_worse: bool
    """Whether these rows show that the bundle is worse than both base and fine-tune."""
    base: float
    tuned: float
    shipped: float
    rows: int
    confidence: float

    def holds(self, floor: float, most: float = math.inf) -> bool:
        """Whether a bundle may pass: the gain kept is at least `floor`, and these rows do not show that it is more than
        `most`; without a gain kept, the bundle is not worse.
        """
        return not self.is_worse if self.kept is None else self.kept >= floor and not self.exceeds(most)

    def exceeds(self, most: float) -> bool:
        """Whether these rows show that more than `most` of the gain is there: then it was learned after measuring."""
        return self.interval is not None and self.interval[0] > most

    def to_json(self) -> dict[str, Any]:
        """The gain as JSON-able values."""
        return asdict(self)


def gain_kept(
    base: Sequence[float] | float,
    tuned: Sequence[float],
    shipped: Sequence[float],
    *,
    counts: Sequence[float] | None = None,
    is_loss: bool = False,
    bootstrap: Bootstrap | None = None,
) -> Gain:
    """The gain kept over the same rows, with a paired bootstrap interval: rows are drawn once for all three.

    base, tuned, shipped (rows,): each row's score, or its summed nats with `counts` its trained tokens. A number for
    `base` is its mean, known without rows. Raises ValueError for sequences of different lengths.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    draw, sign = bootstrap or Bootstrap(), -1.0 if is_loss else 1.0
    weights = np.ones(len(tuned)) if counts is None else np.asarray(counts, np.float64)
    first = np.full(len(tuned), base) * weights if isinstance(base, float | int) else np.asarray(base, np.float64)
    values = np.stack([first, np.asarray(tuned, np.float64), np.asarray(shipped, np.float64), weights], axis=1)
    if not len(values):
        raise ValueError("no rows")
    means = values[:, :3].sum(0) / weights.sum()
    sums = draw.sums(values)
    resampled = sums[:, :3] / np.maximum(sums[:, 3:], 1e-12) * sign
    gained, left = resampled[:, 1] - resampled[:, 0], resampled[:, 2] - resampled[:, 0]
    has_gained = draw.interval(gained)[0] > 0
    lost = resampled[:, 2] - resampled[:, :2].min(1)
    return Gain(
        kept=float((means[2] - means[0]) / (means[1] - means[0])) if has_gained else None,
        interval=draw.interval(left[gained > 0] / gained[gained > 0]) if has_gained else None,
        is_worse=draw.interval(lost)[1] < 0,
        base=float(means[0]),
        tuned=float(means[1]),
        shipped=float(means[2]),
        rows=len(values),
        confidence=draw.confidence,
    )
