"""Logits of a decoder bundle by plain onnxruntime: for losses and for comparing with torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgetune.runtime.bundle import Bundle


class Logits:
    """A bundle's graph in an onnxruntime session, run without a cache from outside."""

    def __init__(self, bundle: Bundle | Path | str, *, threads: int | None = None) -> None:
        """Raises BundleError if onnxruntime cannot load the graph."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """ids (T,) -> (T, V) float32; row t predicts token t + 1. Raises PromptError if there are none or too many."""
        ...

    def batch_logits(self, batch: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """B sequences of any lengths in one run -> B arrays (T_b, V) float32."""
        ...

    def token_losses(self, ids: Sequence[int]) -> np.ndarray:
        """ids (T,) -> (T - 1,) float32: nats of token t + 1 given what is before. Long texts go in chunks, so that
        peak memory does not grow with T x V."""
        ...
