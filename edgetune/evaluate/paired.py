"""Two targets on the same rows: McNemar's exact test and the paired bootstrap. Pure functions."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np

from edgetune.evaluate.resample import Bootstrap, Interval


@dataclass(frozen=True)
class Counted:
    """What one target has of a score that is a ratio of sums over rows, or the mean of several such: a macro F1."""

    tops: np.ndarray
    """(rows, K) float64: 1.0 for a right answer; the nats of a row; twice the hits of each label."""
    bottoms: np.ndarray
    """(rows, K) float64: 1.0; trained tokens; rows answered and rows meant, of each label."""

    @property
    def value(self) -> float:
        """The score over all rows."""
        return float(ratios(self.tops.sum(0)[None], self.bottoms.sum(0)[None])[0])


def ratios(tops: np.ndarray, bottoms: np.ndarray) -> np.ndarray:
    """Sums (S, K) and (S, K) -> (S,): the mean of the ratios whose bottom is not nothing; 0.0 where all are."""
    counts = bottoms > 0
    shares = np.divide(tops, bottoms, out=np.zeros_like(tops), where=counts)
    found: np.ndarray = shares.sum(1) / np.maximum(counts.sum(1), 1)
    return found


def bootstrap_difference(a: Counted, b: Counted, bootstrap: Bootstrap) -> tuple[Interval, float]:
    """(interval of B - A, two-sided p): rows are drawn again with replacement, once for both.

    p counts the resamples at or beyond no difference, and one more, so that it is never 0.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 15.
    """
    columns = a.tops.shape[1]
    sums = bootstrap.sums(np.concatenate([a.tops, a.bottoms, b.tops, b.bottoms], axis=1))
    a_tops, a_bottoms, b_tops, b_bottoms = (sums[:, start * columns : (start + 1) * columns] for start in range(4))
    drawn = ratios(b_tops, b_bottoms) - ratios(a_tops, a_bottoms)
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return bootstrap.interval(drawn), min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test, from the rows that only A has right and those that only B has.

    Were neither better, each row on which they differ would fall to either side with probability 1/2.
    Source: McNemar 1947, Psychometrika 12, 153-157; exact: Dietterich 1998, Neural Computation 10, 1895-1923.
    """
    rows = only_a + only_b
    tail = sum(math.comb(rows, count) for count in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**rows)


def needed(rows: int, *, alpha: float) -> int | None:
    """How many of `rows` on which two targets differ one must win for p < alpha; None if even all are too few."""
    won = bisect.bisect_left(range(rows + 1), True, lo=(rows + 1) // 2, key=lambda w: mcnemar(w, rows - w) < alpha)
    return won if won <= rows else None
