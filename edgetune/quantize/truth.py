"""What the merged model says on eval rows: the loss and the probabilities that a rounded one is held against.

In the flow: merged model -> `Truth` -> repair asks it at each look how far it has gone from what was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetune.data.encode import NOT_TRAINED
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

    def row_losses(self, model: Any) -> list[tuple[float, int]]:
        """Of each row its nats under a model, and its trained tokens."""
        found = (self.tokens.at([place]) for place in range(len(self.tokens)))
        return [evaluate_loss(model, row, pad_id=self.pad_id, max_seq_len=self.max_seq_len) for row in found]

    def log_probabilities(self, model: Any) -> Iterator[Tensor]:
        """(n, vocabulary) float32 at trained positions, a part at a time."""
        return trained_log_probabilities(
            model, self.tokens, pad_id=self.pad_id, max_seq_len=self.max_seq_len, batch_size=self.batch_size
        )


def spread(tokens: Tokens, most: int) -> Tokens:
    """Rows at even distances, as many as have at most so many trained tokens together; the first where none has."""
    seen = np.concatenate([[0], np.cumsum(tokens.labels[: tokens.offsets[-1]] != NOT_TRAINED)])
    counts = np.diff(seen[tokens.offsets])
    for count in range(len(tokens), 0, -1):
        places = [place * len(tokens) // count for place in range(count)]
        if counts[places].sum() <= most:
            return tokens.at(places)
    return tokens.at([0])


@dataclass(frozen=True)
class Truth:
    """The merged model on the eval rows."""

    rows: EvalRows
    compared: EvalRows
    """Those of the rows, at even distances, that distributions are compared on."""
    loss: float
    """Nats per trained token, over all the rows."""
    found: Tensor
    """Log-probabilities at the trained tokens of the compared rows, float32 (tokens, vocabulary), on the CPU."""

    @classmethod
    def measure(cls, model: Any, rows: EvalRows) -> Truth:
        """What a model says of the rows; it is not kept."""
        most = min(MOST_TOKENS, MOST_VALUES // model.config.get_text_config().vocab_size)
        compared = dataclasses.replace(rows, tokens=spread(rows.tokens, most))
        parts = [part.cpu() for part in compared.log_probabilities(model)]
        return cls(rows, compared, rows.loss(model), torch.cat(parts))

    def divergence(self, model: Any) -> float:
        """Mean Kullback-Leibler divergence of a model from this one, in nats a token; 0 where both are the same."""
        total, start = 0.0, 0
        for part in self.compared.log_probabilities(model):
            wanted = self.found[start : start + len(part)].to(part.device)
            total += float((wanted.exp() * (wanted - part)).sum(dtype=torch.float64))
            start += len(wanted)
        return total / max(start, 1)
