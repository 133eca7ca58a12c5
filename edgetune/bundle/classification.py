"""A merged classifier -> a bundle: graph, tokenizer, labels, and probabilities that mean what they say."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from torch import Tensor

from edgetune.data.formats import Example
from edgetune.evaluate.labeller import calibrate_for
from edgetune.export.encoder import build_encoder
from edgetune.hashes import hash_tree, hash_values
from edgetune.model.base import load_merged, load_tokenizer, padding_id
from edgetune.model.classifier import load_classifier
from edgetune.provenance import provenance
from edgetune.quantize.classification import put_on_grid
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import TOKENIZER, Bundle, ClassifierFormat, write_manifest
from edgetune.runtime.classifier import Classifier as DeviceClassifier
from edgetune.verify.classification import Built

BATCH_TEXTS = 32


def build_classifier_bundle(merged: Path, folder: Path, recipe: Recipe, texts: Sequence[str] = ()) -> Built:
    """Write a bundle into an empty folder, weights rounded as [export] says, "gptq" for `texts`. Raises ModelError."""
    tokenizer, classifier = load_tokenizer(merged), load_classifier(load_merged(merged), merged)
    spec, precision = classifier.spec, recipe.export.precision
    grid = grid_of(recipe.export)
    grid = dataclasses.replace(grid, head_bits=grid.bits) if grid else None  # of embeddings; the head stays float
    batches = token_batches(tokenizer, texts, max_length=spec.max_length)
    matrices = put_on_grid(classifier, grid, batches, method=recipe.export.rounding) if grid else {}
    build_encoder(
        classifier,
        folder,
        precision=precision,
        matrices=matrices,
        accuracy_level=grid.accuracy_level if grid else 0,
        max_length=spec.max_length,
    )
    save_tokenizer(tokenizer, folder / TOKENIZER, max_length=spec.max_length)
    bundle = Bundle(
        path=folder,
        name=recipe.name,
        precision=precision,
        grid=grid,
        chat=None,
        context_length=spec.max_length,
        task="classification",
        classifier=ClassifierFormat(
            labels=spec.labels,
            multi_label=spec.multi_label,
            max_length=spec.max_length,
            pad_id=padding_id(tokenizer),
            out_of_scope_label=spec.out_of_scope_label if spec.out_of_scope_label in spec.labels else None,
        ),
        provenance={
            "base": recipe.model.base,
            "merged_sha256": hash_tree(merged),
            "recipe_sha256": hash_values(recipe),
            **provenance(recipe.train.seed),
        },
    )
    return Built(write_manifest(bundle), classifier, matrices, tokenizer)


def save_tokenizer(tokenizer: Any, path: Path, *, max_length: int) -> None:
    """Write tokenizer.json so that it cuts as training did and pads nothing, whatever the base's own says."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(max_length)
    backend.save(str(path))


def token_batches(tokenizer: Any, texts: Sequence[str], *, max_length: int) -> list[tuple[Tensor, Tensor]]:
    """Ids and mask, int64 (B, T) each, of texts in batches of like length."""
    in_order = sorted(texts, key=len)
    batches = []
    for start in range(0, len(in_order), BATCH_TEXTS):
        batch = tokenizer(
            in_order[start : start + BATCH_TEXTS],
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
        )
        batches.append((batch["input_ids"], batch["attention_mask"]))
    return batches


def draw_texts(rows: Iterable[Example], count: int, *, seed: int) -> list[str]:
    """`count` texts drawn from all rows, the same for the same seed; memory does not grow with the rows.

    Source: Vitter 1985, Random Sampling with a Reservoir, algorithm R.
    """
    draw, kept = random.Random(seed), list[str]()
    for number, text in enumerate(row.text for row in rows if (row.text or "").strip()):
        place = number if number < count else draw.randrange(number + 1)
        if place < count:
            kept[place : place + 1] = [str(text)]
    return kept


def calibrated(bundle: Bundle, recipe: Recipe) -> Bundle:
    """The bundle with temperature and threshold, chosen by its own logits on the recipe's eval rows."""
    device = DeviceClassifier(bundle)
    temperature, threshold = calibrate_for(recipe, device, device.format.labels)
    return dataclasses.replace(
        bundle, classifier=dataclasses.replace(device.format, temperature=temperature, threshold=threshold)
    )
