"""A bundle as an Answerer: the device's own loop for answers, plain onnxruntime for losses. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgetune.evaluate.rows import EvalRow


class BundleAnswerer:
    """A decoder bundle, with its own renderer and tokenizer: prompts must come out as the very ids of the eval set."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError."""

    def generate(
        self,
        rows: Sequence[EvalRow],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        on_done: Callable[[int], object] | None = None,
    ) -> list[str]:
        """Greedy answers one by one. Raises CheckError if the bundle renders a prompt otherwise than the training did."""
        ...

    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row."""
        ...

    def decode_speed(self, row: EvalRow, *, new_tokens: int, eos_ids: Sequence[int]) -> tuple[int, float]:
        """(tokens, seconds) of one prompt alone, its first token left out."""
        ...
