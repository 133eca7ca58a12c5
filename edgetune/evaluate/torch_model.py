"""A torch model as an Answerer: batched greedy generation with a KV cache, and losses of whole rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgetune.evaluate.rows import EvalRow


class TorchAnswerer:
    """A causal language model in evaluation mode, with the tokenizer that turns its answers into text."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 64) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def generate(
        self,
        rows: Sequence[EvalRow],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        on_done: Callable[[int], object] | None = None,
    ) -> list[str]:
        """Greedy answers, longest prompts first in batches padded on the left."""
        ...

    def losses(self, rows: Sequence[EvalRow]) -> list[tuple[float, int]]:
        """(summed nats, trained tokens) of each row; only trained positions reach the output head."""
        ...

    def decode_speed(self, row: EvalRow, *, new_tokens: int, eos_ids: Sequence[int]) -> tuple[int, float]:
        """(tokens, seconds) of one prompt alone, its first token left out."""
        ...


@torch.no_grad()
def greedy(
    model: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos_ids: Sequence[int]
) -> list[list[int]]:
    """New token ids of each prompt, end token left out; one batch, padded on the left, finished rows taken out of it."""
    ...
