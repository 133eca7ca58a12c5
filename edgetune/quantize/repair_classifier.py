"""Repair of a rounded classifier: its scales are trained on the user's rows, integers and all vectors as they were.

In the flow: a merged classifier and its matrices on the grid -> the loop of repair.py -> the same integers with better
scales, as they are shipped. Embeddings and head stay as they are.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.data.tokens import LabelledTokens
from edgetune.model.classifier import Classifier, float_copy
from edgetune.progress import Progress
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.repair import Repair, train_on_grid
from edgetune.quantize.repairable import make_repairable, repairable_layers
from edgetune.train.classification import Classification

MOST_EVAL_TEXTS = 1000
"""At even distances: eval files are often sorted by label."""


def repair_classifier(
    classifier: Classifier,
    matrices: Mapping[str, QuantizedMatrix],
    task: Classification,
    *,
    progress: Progress | None = None,
) -> Repair:
    """Train the scales of a merged classifier's matrices (by module name) as the recipe's [export] repair_* says.

    The classifier stays as it was. Losses are in nats per text. Raises DivergedError.
    """
    table, started = task.recipe.export, time.monotonic()
    if progress:
        progress({"stage": "repair", "message": f"repairing in {table.repair_steps} steps"})
    torch.manual_seed(task.recipe.train.seed)
    teacher, model = float_copy(classifier), float_copy(classifier)
    make_repairable(model, matrices, rounds_inputs=table.accuracy_level == 4)
    model.requires_grad_(False).to(classifier.device)
    for layer in repairable_layers(model).values():
        layer.change.requires_grad_(True)
    data = LabelRepairData(task.recipe, task.prepared, task.pad_id, None if table.repair_on == "labels" else teacher)
    truth = LabelTruth.measure(teacher, EvalTexts.of(task))
    done = train_on_grid(model, data, truth, {}, started=started, progress=progress)
    found = {name.removesuffix(".weight"): matrix for name, matrix in done.matrices.items()}
    return dataclasses.replace(done, matrices={**matrices, **found}, vectors={})


@dataclass(frozen=True)
class LabelRepairData(Classification):
    """The rows of training in its order, and what repair learns from them."""

    teacher: Any = None
    """The unquantised classifier, where [export] repair_on asks for it."""

    def loss_sum(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The repair loss summed over the texts of a batch."""
        logits = model(batch.input_ids, batch.attention_mask)
        by_labels = self.label_loss(logits, batch.targets)
        if self.teacher is None:
            return by_labels, batch.trained
        with torch.no_grad():
            truth = self.teacher(batch.input_ids, batch.attention_mask)
        is_multi = self.recipe.classify.multi_label
        by_teacher = _divergences(outcomes(logits, is_multi), outcomes(truth, is_multi)).sum()
        loss = by_teacher if self.recipe.export.repair_on == "teacher" else (by_labels + by_teacher) / 2
        return loss, batch.trained


@dataclass(frozen=True)
class EvalTexts:
    """Eval rows, or train rows where there are none, at most MOST_EVAL_TEXTS of them."""

    task: Classification
    rows: LabelledTokens

    @classmethod
    def of(cls, task: Classification) -> EvalTexts:
        """Those of a task."""
        rows = task.prepared.eval if len(task.prepared.eval) else task.prepared.train
        count = min(len(rows), MOST_EVAL_TEXTS)
        return cls(task, rows.at([place * len(rows) // count for place in range(count)]))

    def loss(self, model: Any) -> float:
        """Nats per text under a classifier."""
        total, count = self.task.evaluate(model, rows=self.rows)
        return total / max(count, 1)

    def row_losses(self, model: Any) -> list[tuple[float, int]]:
        """Of each row its nats under a classifier, and 1."""
        return [self.task.evaluate(model, rows=self.rows.at([place])) for place in range(len(self.rows))]

    @torch.no_grad()
    def outcomes(self, model: Any) -> Iterator[Tensor]:
        """`outcomes` of the rows, a batch at a time."""
        for batch in self.task.batches(self.rows):
            there = batch.to(model.device)
            yield outcomes(model(there.input_ids, there.attention_mask), self.task.recipe.classify.multi_label)


@dataclass(frozen=True)
class LabelTruth:
    """The merged classifier on the eval rows."""

    rows: EvalTexts
    loss: float
    """Nats per text."""
    found: tuple[Tensor, ...]
    """Log-probabilities, a batch each."""

    @classmethod
    def measure(cls, model: Any, rows: EvalTexts) -> LabelTruth:
        """What a classifier says of the rows."""
        return cls(rows, rows.loss(model), tuple(rows.outcomes(model)))

    def divergence(self, model: Any) -> float:
        """Mean Kullback-Leibler divergence of a classifier from this one, in nats a text; 0 where both are the same."""
        pairs = zip(self.rows.outcomes(model), self.found, strict=True)
        return sum(float(_divergences(one, true).sum()) for one, true in pairs) / max(len(self.rows.rows), 1)


def outcomes(logits: Tensor, is_multi: bool) -> Tensor:
    """Log-probabilities (B, K, n) of n outcomes that exclude each other: of labels, or K times of one label or not."""
    if is_multi:
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)
    return logits.log_softmax(-1).unsqueeze(1)


def _divergences(found: Tensor, true: Tensor) -> Tensor:
    """(B, K, n) log-probabilities twice -> (B,): KL of the first from the second in nats, the mean over K."""
    return F.kl_div(found, true, reduction="none", log_target=True).sum(-1).mean(-1)
