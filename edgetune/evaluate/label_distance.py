"""How far a classifier's labels are from the fine-tune's: its logits as distributions for evaluate.distance.

Where a text has one label that is one distribution a text; where it may have several, each label is a decision of its
own: yes or no. Logits are compared as they are, before a temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgetune.evaluate.labeller import BATCH_TEXTS, Labeller


class LabelDistributions:
    """A labeller that labels each batch of texts once: scores and distances are of the same logits."""

    def __init__(self, target: Labeller, *, multi_label: bool) -> None:
        self.target, self.multi_label = target, multi_label
        self._found: dict[tuple[str, ...], np.ndarray] = {}

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """N texts -> (N, labels) float32."""
        key = tuple(texts)
        if key not in self._found:
            self._found[key] = self.target.logits(texts)
        return self._found[key]

    def trained_logits(self, rows: Sequence[Any]) -> Iterator[np.ndarray]:
        """Logits float32 (decisions, choices) of each batch of rows with a text, in order."""
        for start in range(0, len(rows), BATCH_TEXTS):
            found = self.logits([row.text for row in rows[start : start + BATCH_TEXTS]])
            yield np.stack([found, np.zeros_like(found)], -1).reshape(-1, 2) if self.multi_label else found
