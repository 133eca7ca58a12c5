"""Closeness: whether what is shipped is still the model that was measured. Numbers in, numbers out.

Gain kept looks one way: a bundle that was trained on after measuring may win and be another model. In the flow: the
divergence and the scores, row by row, of fine-tune and bundle -> what a verdict is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgetune.evaluate.resample import Bootstrap

CHANGED = 0.5
"""Of a row's score, 0..1: a row that moves by at least so much has changed; a right answer is wrong now, or a wrong one
right."""


@dataclass(frozen=True)
class Closeness:
    """How far a bundle is from the fine-tune."""

    kl: float | None
    """Mean divergence from the fine-tune's next-token distributions, nats a token; None where none are compared."""
    changed_rows: float | None
    """Share of rows whose answer is right with one and wrong with the other; None where nothing is answered."""
    interval: tuple[float, float] | None
    """Of the share, by bootstrap over the rows."""
    rows: int

    def holds(self, most_kl: float, most_changed: float) -> bool:
        """Whether a bundle may pass: not too far, and these rows do not show that too many have changed."""
        return not (self.is_far(most_kl) or self.has_changed(most_changed))

    def is_far(self, most_kl: float) -> bool:
        """Whether the distributions are further apart than `most_kl` nats a token."""
        return self.kl is not None and self.kl > most_kl

    def has_changed(self, most: float) -> bool:
        """Whether these rows show that a share of more than `most` has changed."""
        return self.interval is not None and self.interval[0] > most

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return asdict(self)


def measure_closeness(kl: float | None, scores: Sequence[tuple[float, float]], bootstrap: Bootstrap) -> Closeness:
    """Closeness by a divergence in nats a token, and by each row's score, 0..1, of fine-tune and bundle."""
    if not scores:
        return Closeness(kl, None, None, 0)
    changed = np.abs(np.subtract(*np.asarray(scores, np.float64).T)) >= CHANGED - 1e-9
    means = bootstrap.sums(changed[:, None].astype(np.float64))[:, 0] / len(changed)
    return Closeness(kl, float(changed.mean()), bootstrap.interval(means), len(changed))
