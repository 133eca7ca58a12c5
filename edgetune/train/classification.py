"""Training of encoders: batches of texts of like length, and the loss over labels. A Task of the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.data.classification import head_gone_on_from
from edgetune.data.prepare import Prepared
from edgetune.data.tokens import LabelledTokens
from edgetune.lora.adapter import save
from edgetune.model.classifier import Classifier, ClassifierSpec, imprint, load_head, save_head
from edgetune.model.device import autocast
from edgetune.recipe import Recipe
from edgetune.runtime.batches import by_length, padded
from edgetune.train.batches import cut
from edgetune.train.loss import without_dropout

BUCKET_BATCHES = 50
"""Batches whose texts are sorted by length together: little padding, and still another mix in every epoch."""
HEAD_SHARE = 10.0
"""How much faster a new head learns than the adapter, where the recipe does not say."""
EVAL_ROWS, EVAL_TOKENS = 256, 8192
"""Of a batch that is not trained on, padding included."""


@dataclass(frozen=True)
class LabelledBatch:
    """Padded texts with targets."""

    input_ids: Tensor
    """int64 (B, T)."""
    attention_mask: Tensor
    """int64 (B, T), 1 for tokens."""
    targets: Tensor
    """int64 (B,), or float32 (B, labels)."""

    @property
    def trained(self) -> int:
        """Texts."""
        return len(self.input_ids)

    @property
    def read(self) -> int:
        """Tokens, padding aside."""
        return int(self.attention_mask.sum())

    def to(self, device: Any) -> LabelledBatch:
        """The same batch on a device."""
        return LabelledBatch(*(part.to(device, non_blocking=True) for part in vars(self).values()))


@dataclass(frozen=True)
class Classification:
    """Labelled texts for an encoder."""

    recipe: Recipe
    prepared: Prepared[LabelledTokens]
    pad_id: int

    @property
    def spec(self) -> ClassifierSpec:
        """What the head will mean."""
        table = self.recipe.classify
        return ClassifierSpec(
            labels=self.prepared.labels,
            pooling=table.pooling,
            head=table.head,
            scale=table.scale,
            multi_label=table.multi_label,
            max_length=self.prepared.max_length,
            out_of_scope_label=table.out_of_scope_label,
        )

    def head_share(self, learning_rate: float) -> float:
        """How many times the learning rate of the adapter the head learns with."""
        rate = self.recipe.classify.head_learning_rate
        return HEAD_SHARE if rate == "auto" else rate / learning_rate

    def complete(self, model: Any) -> Classifier:
        """The encoder with a head: that of lora.init_from where it has the same labels, else a new one.

        A new cosine head starts at the mean direction of each label's training texts.
        """
        classifier = Classifier(model, self.spec)
        if folder := head_gone_on_from(self.recipe, self.prepared.labels):
            load_head(classifier, folder)
        elif self.recipe.classify.head == "cosine" and not self.recipe.classify.multi_label:
            with torch.no_grad(), without_dropout(classifier), autocast(classifier):
                batches = (batch.to(classifier.device) for batch in self.batches(self.prepared.train))
                embedded = ((classifier.embed(b.input_ids, b.attention_mask), b.targets) for b in batches)
                imprint(classifier, embedded)
        return classifier

    def epoch(self, number: int) -> list[int]:
        """Texts in an order that follows from seed and epoch, those of a step of like length."""
        table = self.recipe.train
        generator = np.random.default_rng([table.seed, number])
        size = self.recipe.batch_size * table.gradient_accumulation_steps
        return bucketed(self.prepared.train.lengths, batch_size=size, generator=generator)

    def collate(self, rows: Sequence[int]) -> LabelledBatch:
        """Texts padded to the longest of them."""
        return collate(self.prepared.train, rows, pad_id=self.pad_id)

    def loss_sum(self, model: Any, batch: LabelledBatch) -> tuple[Tensor, int]:
        """Cross entropy over labels (of multi-label rows the mean binary one), smoothed and weighted as asked."""
        return self.label_loss(model(batch.input_ids, batch.attention_mask), batch.targets), batch.trained

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits (B, labels) float32, summed over texts; targets as in LabelledBatch."""
        table = self.recipe.classify
        weights = None if self._weights is None else self._weights.to(logits.device)
        # A row, or a cell, weighs what its true label does: weights on the smoothed targets would teach that a rare
        # label is likely everywhere.
        if table.multi_label:
            wanted = targets * (1 - table.label_smoothing) + table.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            if weights is not None:
                losses = torch.where(targets > 0, weights * losses, losses)
            return losses.mean(1).sum()
        losses = F.cross_entropy(logits, targets, label_smoothing=table.label_smoothing, reduction="none")
        return (losses if weights is None else weights[targets] * losses).sum()

    @torch.no_grad()
    def evaluate(
        self, model: Any, part: slice = slice(None), pieces: int = 1, *, rows: LabelledTokens | None = None
    ) -> tuple[float, int]:
        """Summed loss and its texts over the eval rows, or over `rows`; `part` of their batches, each cut into so many
        pieces.
        """
        total, count, rows = 0.0, 0, self.prepared.eval if rows is None else rows
        with without_dropout(model), autocast(model):
            for numbers in cut(_of_like_length(rows)[part], pieces):
                summed, texts = self.loss_sum(model, collate(rows, numbers, pad_id=self.pad_id).to(model.device))
                total += float(summed)
                count += texts
        return total, count

    def batches(self, rows: LabelledTokens) -> Iterator[LabelledBatch]:
        """Rows in batches that are passed without gradients, in the same order each time."""
        return (collate(rows, numbers, pad_id=self.pad_id) for numbers in _of_like_length(rows))

    def save(self, model: Classifier, folder: Path) -> None:
        """Write the adapter in PEFT's format, the head beside it."""
        save(model.encoder, folder, self.recipe.model, beside=partial(save_head, model))

    @cached_property
    def _weights(self) -> Tensor | None:
        """float32 (labels,): rows / (labels * rows of the label); of multi-label rows absent / present."""
        if self.recipe.classify.class_weights == "none":
            return None
        counts = np.maximum(self.prepared.train.counts(), 1)
        rows = len(self.prepared.train)
        shares = (rows - counts) / counts if self.recipe.classify.multi_label else rows / (len(counts) * counts)
        return torch.from_numpy(shares.astype(np.float32))


def _of_like_length(rows: LabelledTokens) -> list[list[int]]:
    """The numbers of all rows, in batches that are passed without gradients."""
    return by_length(rows.lengths, most_rows=EVAL_ROWS, most_tokens=EVAL_TOKENS)


def bucketed(lengths: np.ndarray, *, batch_size: int, generator: np.random.Generator) -> list[int]:
    """Row numbers, so many after another of like length: shuffled, sorted within stretches, batches shuffled.

    A batch that is not full comes last.
    """
    order = generator.permutation(len(lengths))
    batches: list[list[int]] = []
    stretch = batch_size * BUCKET_BATCHES
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        batches += [part[places].tolist() for places in by_length(lengths[part], most_rows=batch_size)]
    order_of_batches = generator.permutation(len(batches)).tolist()
    order_of_batches.sort(key=lambda place: len(batches[place]) < batch_size)  # stable: only one that is not full moves
    return [row for place in order_of_batches for row in batches[place]]


def collate(rows: LabelledTokens, numbers: Sequence[int], *, pad_id: int) -> LabelledBatch:
    """Texts as one batch, padded on the right to the longest of them."""
    ids, mask = padded([rows.tokens[number].input_ids for number in numbers], pad_id=pad_id)
    return LabelledBatch(torch.from_numpy(ids), torch.from_numpy(mask), rows.target(numbers))
