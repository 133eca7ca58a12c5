"""Training of decoders: packed rows of conversations or texts, and the loss of the next token. A Task of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetune.data.prepare import Prepared
from edgetune.data.tokens import Tokens
from edgetune.lora.adapter import save
from edgetune.recipe import Recipe
from edgetune.train.batches import Order, collate_rows
from edgetune.train.loss import evaluate_loss, loss_sum, use_segments


@dataclass(frozen=True)
class Generation:
    """Conversations or texts for a decoder: packed rows, cross entropy of the next token."""

    recipe: Recipe
    prepared: Prepared[Tokens]
    pad_id: int

    def head_share(self, _: float) -> float:
        """1: a decoder has its head already."""
        return 1.0

    def complete(self, model: Any) -> Any:
        """The model with attention inside packed samples."""
        use_segments(model)
        return model

    def epoch(self, number: int) -> list[Any]:
        """Packed rows in the seed's order."""
        data, seed = self.recipe.data, self.recipe.train.seed
        return Order(data.max_seq_len, data.packing, seed).epoch(self.prepared.train, number)

    def collate(self, rows: Any) -> Any:
        """Packed rows as tensors."""
        return collate_rows(self.prepared.train, rows, pad_id=self.pad_id)

    def loss_sum(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Summed cross entropy (nats) at trained positions, and how many they are."""
        return loss_sum(model, batch, is_fused=self.recipe.train.fused_loss)

    def evaluate(
        self, model: Any, part: slice = slice(None), pieces: int = 1, *, rows: Tokens | None = None
    ) -> tuple[float, int]:
        """Summed loss and its tokens over the eval rows, or over `rows`; `part` of their batches, each cut into so many
        pieces.
        """
        return evaluate_loss(
            model,
            self.prepared.eval if rows is None else rows,
            pad_id=self.pad_id,
            max_seq_len=self.recipe.data.max_seq_len,
            batch_size=self.recipe.batch_size,
            part=part,
            pieces=pieces,
        )

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        save(model, folder, self.recipe.model)
