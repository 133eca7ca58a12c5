"""Scores of a model that is in memory: what a search asks after each trial, and cross-validation after each fold.

The rows, the scoring and the numbers are those of the evaluate stage; only the process of its own is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.evaluate import labeller
from edgetune.evaluate.label_rows import LabelSet, make_calibration_set, make_label_set
from edgetune.evaluate.labeller import LabelAnswer, LabelScore
from edgetune.evaluate.rows import EvalSet, make_eval_set
from edgetune.evaluate.score import Answer, Score, score
from edgetune.evaluate.texts import text_format
from edgetune.evaluate.torch_classifier import TorchLabeller
from edgetune.evaluate.torch_model import TorchAnswerer
from edgetune.lora import adapter
from edgetune.model.classifier import drop_unused_pooler, load_classifier
from edgetune.recipe import Recipe

Progress = Callable[[Mapping[str, Any]], None]
Rows = EvalSet | LabelSet


def eval_rows(recipe: Recipe, base: Path, *, labels: Sequence[str] = ()) -> Rows:
    """The recipe's eval rows as its base reads them, at most evaluate.max_rows; no test row is looked at.

    `labels`: a classifier's, in the order of its logits. Raises DataError, ModelError.
    """
    if recipe.is_classifier:
        rows = make_calibration_set(recipe, labels)
        return dataclasses.replace(rows, rows=rows.calibration, scores_calibration_rows=True)
    texts = text_format(recipe, base)
    return make_eval_set(
        recipe, texts.tokenizer, eos_ids=texts.eos_ids, context_length=texts.context_length, split="eval"
    )


def held_out_rows(recipe: Recipe, base: Path, *, labels: Sequence[str] = ()) -> Rows:
    """The recipe's test rows in the same way; a classifier's are calibrated on its eval rows. Raises as eval_rows."""
    if recipe.is_classifier:
        return make_label_set(recipe, labels)
    texts = text_format(recipe, base)
    return make_eval_set(recipe, texts.tokenizer, eos_ids=texts.eos_ids, context_length=texts.context_length)


def score_live(model: Any, tokenizer: Any, rows: Rows, *, progress: Progress | None = None) -> Score | LabelScore:
    """Scores of a decoder, or of a Classifier, on rows; its weights stay as they are, its mode becomes eval."""
    return answer_live(model, tokenizer, rows, progress=progress)[0]


def answer_live(
    model: Any, tokenizer: Any, rows: Rows, *, progress: Progress | None = None
) -> tuple[Score | LabelScore, Sequence[Answer | LabelAnswer]]:
    """The same with the answer to each row."""
    if isinstance(rows, EvalSet):
        return score(TorchAnswerer(model, tokenizer), rows, progress=progress)
    return labeller.score(TorchLabeller(model.eval(), tokenizer), rows, progress=progress)


def with_adapter(base: Any, recipe: Recipe, folder: Path) -> Any:
    """A lent base with a saved adapter, and a classifier's head, ready to be scored. Raises ModelError."""
    if recipe.is_classifier:
        drop_unused_pooler(base, recipe.classify.pooling)  # before the adapter: it has no weights for it
    model = adapter.load(base, folder)
    return load_classifier(model, folder) if recipe.is_classifier else model
