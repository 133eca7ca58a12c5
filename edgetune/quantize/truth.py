"""What the merged model says on eval rows: the loss and the probabilities that a rounded one is held against.

In the flow: merged model -> `Truth` -> repair asks it at each look how far it has gone from what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetune.data.prepare import Prepared
from edgetune.data.tokens import Tokens
from edgetune.recipe import Recipe
from edgetune.train.loss import evaluate_loss, trained_log_probabilities

MOST_EVAL_ROWS = 200
MOST_VALUES = 1 << 24
"""Log-probabilities kept: 64 MiB, some 340 tokens of a vocabulary of 49,152."""
MOST_TOKENS = 2048
"""Tokens compared, as many as the values allow: more would tell little more and cost each look its time."""


@dataclass(frozen=True)
class EvalRows:
    """The first eval rows, or as many train rows where there are none, and how they are batched."""

    tokens: Tokens
    pad_id: int
    max_seq_len: int
    batch_size: int

    @classmethod
    def of(cls, rows: Prepared, recipe: Recipe, pad_id: int) -> EvalRows:
        """Those of a recipe."""
        chosen = rows.eval if len(rows.eval) else rows.train
        return cls(chosen.first(MOST_EVAL_ROWS), pad_id, recipe.data.max_seq_len, recipe.batch_size)

    def loss(self, model: Any) -> float:
        """Nats per trained token under a model."""
        total, count = evaluate_loss(
            model, self.tokens, pad_id=self.pad_id, max_seq_len=self.max_seq_len, batch_size=self.batch_size
        )
        return total / max(count, 1)

    def log_probabilities(self, model: Any) -> Iterator[Tensor]:
        """(n, vocabulary) float32 at trained positions, a part at a time."""
        return trained_log_probabilities(
            model, self.tokens, pad_id=self.pad_id, max_seq_len=self.max_seq_len, batch_size=self.batch_size
        )


@dataclass(frozen=True)
class Truth:
    """The merged model on the eval rows."""

    rows: EvalRows
    loss: float
    """Nats per trained token."""
    found: Tensor
    """Log-probabilities of its first trained tokens, float32 (tokens, vocabulary), on the CPU."""

    @classmethod
    def measure(cls, model: Any, rows: EvalRows) -> Truth:
        """What a model says of the rows; it is not kept."""
        parts: list[Tensor] = []
        count = 0
        for part in rows.log_probabilities(model):
            most = min(MOST_TOKENS, MOST_VALUES // part.shape[-1])
            parts.append(part[: most - count].cpu())
            count += len(parts[-1])
            if count >= most:
                break
        return cls(rows, rows.loss(model), torch.cat(parts))

    def divergence(self, model: Any) -> float:
        """Mean Kullback-Leibler divergence of a model from this one, in nats a token; 0 where both are the same."""
        total, start = 0.0, 0
        for part in self.rows.log_probabilities(model):
            wanted = self.found[start : start + len(part)].to(part.device)
            total += float((wanted.exp() * (wanted - part[: len(wanted)])).sum(dtype=torch.float64))
            start += len(wanted)
            if start == len(self.found):
                break
        return total / max(start, 1)
