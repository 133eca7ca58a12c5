"""What a training does with its rows: the one thing in which decoders and classifiers differ for the loop.

A task holds the rows, puts an epoch of them in order, and takes their loss. set_up makes the recipe's, the loop calls
it. generation is here, classification in classify.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from edgetune.data.prepare import Prepared
from edgetune.lora.adapter import save
from edgetune.recipe import Recipe
from edgetune.train.batches import Order, collate_rows
from edgetune.train.fit import Data
from edgetune.train.loss import evaluate_loss, loss_sum, use_segments


class Task(Data, Protocol):
    """Rows and what is learned from them."""

    @property
    def recipe(self) -> Recipe:
        """What is asked for, "auto" decided where memory decides it."""

    @property
    def prepared(self) -> Any:
        """The data: `train` and `eval` rows, each with a fingerprint, and a `report` with summary and notes."""

    def complete(self, model: Any) -> Any:
        """The adapted base, ready to train: with its head, with its attention."""

    def evaluate(self, model: Any, part: slice = slice(None)) -> tuple[float, int]:
        """Summed loss over the eval rows, dropout off, and what it sums over; `part` of their batches."""

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter folder, all or nothing. Raises RunError."""


@dataclass(frozen=True)
class Generation:
    """Conversations or texts for a decoder: packed rows, cross entropy of the next token."""

    recipe: Recipe
    prepared: Prepared
    pad_id: int

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
        """Cross entropy at trained positions."""
        return loss_sum(model, batch, is_fused=self.recipe.train.fused_loss)

    def evaluate(self, model: Any, part: slice = slice(None)) -> tuple[float, int]:
        """The same over the eval rows."""
        return evaluate_loss(
            model,
            self.prepared.eval,
            pad_id=self.pad_id,
            max_seq_len=self.recipe.data.max_seq_len,
            batch_size=self.recipe.batch_size,
            part=part,
        )

    def save(self, model: Any, folder: Path) -> None:
        """PEFT's format."""
        save(model, folder, self.recipe.model)
