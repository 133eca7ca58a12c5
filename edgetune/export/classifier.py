"""A merged classifier -> a bundle: graph, tokenizer, labels, and probabilities that mean what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgetune.evaluate.labeller import calibrate_for
from edgetune.export.bundle import grid_of
from edgetune.export.encoder import build_encoder
from edgetune.hashes import hash_tree, hash_values
from edgetune.model.base import load_merged, load_tokenizer
from edgetune.model.classifier import Classifier, drop_unused_pooler, load_head, read_spec
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import TOKENIZER, Bundle, ClassifierFormat, write_manifest
from edgetune.runtime.classifier import Classifier as DeviceClassifier


def build_classifier_bundle(merged: Path, folder: Path, recipe: Recipe) -> tuple[Bundle, Classifier, Any]:
    """Write a bundle, neither verified nor calibrated yet, into an empty folder.

    Gives the bundle, the torch classifier it was made from, and the tokenizer of training. Raises ModelError.
    """
    spec, tokenizer = read_spec(merged), load_tokenizer(merged)
    encoder = load_merged(merged)
    drop_unused_pooler(encoder, spec.pooling)
    classifier = Classifier(encoder, spec).eval()
    load_head(classifier, merged)
    grid, precision = grid_of(recipe.export), recipe.export.precision
    build_encoder(classifier, folder, precision=precision, grid=grid, max_length=spec.max_length)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
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
            pad_id=tokenizer.pad_token_id or 0,
            out_of_scope_label=spec.out_of_scope_label,
        ),
        provenance={
            "base": recipe.model.base,
            "merged_sha256": hash_tree(merged),
            "recipe_sha256": hash_values(recipe),
            **provenance(recipe.train.seed),
        },
    )
    return write_manifest(bundle), classifier, tokenizer


def calibrated(bundle: Bundle, recipe: Recipe) -> Bundle:
    """The bundle with temperature and threshold, chosen by its own logits on the recipe's eval rows."""
    device = DeviceClassifier(bundle)
    temperature, threshold = calibrate_for(recipe, device, device.format.labels)
    return dataclasses.replace(
        bundle, classifier=dataclasses.replace(device.format, temperature=temperature, threshold=threshold)
    )
