"""A merged classifier -> a bundle: graph, tokenizer, labels, and probabilities that mean what they say.

What export knows of the task "classification": see bundle/task.py.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from torch import Tensor

from edgetune.bundle.layer_changes import encoder_layers_changed
from edgetune.bundle.place import ExportResult, put_in_place
from edgetune.data.formats import Example
from edgetune.data.prepare import examples, longest_row, prepare
from edgetune.data.read import on_disk
from edgetune.errors import RecipeError
from edgetune.evaluate.labeller import calibrate_for
from edgetune.export.encoder import build_encoder
from edgetune.hashes import hash_tree, hash_values
from edgetune.lora.merge import BaseTensors
from edgetune.lora.read import read_record
from edgetune.model.base import load_merged, load_tokenizer, padding_id
from edgetune.model.classifier import Classifier, load_classifier, read_spec
from edgetune.progress import Progress, silent
from edgetune.provenance import provenance
from edgetune.quantize.classification import dequantized, quantize_classifier
from edgetune.quantize.grid import QuantizedMatrix
from edgetune.quantize.layer_change import LayerChange
from edgetune.quantize.methods import method_of
from edgetune.quantize.precisions import grid_of
from edgetune.quantize.repair import Repair
from edgetune.quantize.repair_classifier import EvalTexts, repair_classifier
from edgetune.recipe import CALIBRATED, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.batches import by_length
from edgetune.runtime.bundle import TOKENIZER, Bundle, ClassifierFormat, write_manifest
from edgetune.runtime.classifier import Classifier as DeviceClassifier
from edgetune.runtime.grid import BundleGrid
from edgetune.train.classification import Classification
from edgetune.verify.checks import Verification
from edgetune.verify.classification import MOST_TEXTS, Built, verify_encoder

KIND = "classifier"
IS_DECODER = False
BATCH_TEXTS = 32


def check_merged(merged: Path) -> None:
    """Nothing: torch exports any encoder, or says so when it tries."""


def as_trained(recipe: Recipe, merged: Path) -> Recipe:
    """The recipe with the kind of labels that the folder's head was trained for. Raises ModelError."""
    spec = read_spec(merged)
    outside = spec.out_of_scope_label or recipe.classify.out_of_scope_label
    return recipe.with_classify(multi_label=spec.multi_label, out_of_scope_label=outside)


def export(merged: Path, out: Path, recipe: Recipe, *, cache: Path, progress: Progress | None = None) -> ExportResult:
    """The bundle `out` of a merged classifier.

    Its weights are rounded as [export] method says, "gptq" for the recipe's train rows, and repaired on these as
    repair_steps says; its probabilities are calibrated on the eval rows. Then it is verified, with the threshold that
    may make answers "unknown", on texts drawn from the eval rows, and from the train rows where those are few.
    """
    tell = progress or silent

    def make(folder: Path) -> tuple[Bundle, Verification]:
        tell({"stage": "export", "message": f"building {recipe.export.precision}"})
        seed = recipe.train.seed
        texts = draw_texts(examples(recipe, "eval"), MOST_TEXTS, seed=seed)
        texts += draw_texts(examples(recipe, "train"), MOST_TEXTS - len(texts), seed=seed)
        texts_of_training = calibration_texts(recipe)
        built = build_classifier_bundle(merged, folder, recipe, texts_of_training, cache=cache, progress=progress)
        tell({"stage": "export", "message": "calibrating on the eval rows"})
        built = dataclasses.replace(built, bundle=calibrated(built.bundle, recipe))
        tell({"stage": "export", "message": f"verifying on {len(texts)} texts"})
        return built.bundle, verify_encoder(built, texts)

    return put_in_place(out, (merged, *on_disk(recipe.data)), make)


def build_again(bundle: Bundle, merged: Path, folder: Path, recipe: Recipe) -> Bundle:  # noqa: ARG001
    """The classifier once more, as another recipe asks, weights rounded to the nearest; calibrated, not verified."""
    return write_manifest(calibrated(build_classifier_bundle(merged, folder, recipe).bundle, recipe))


def as_exported(merged: Path, recipe: Recipe, *, cache: Path, progress: Progress | None = None) -> Classifier:
    """The merged classifier in torch with the numbers of its bundle: rounded and repaired as by `export`."""
    classifier, grid = load_classifier(load_merged(merged), merged), _grid_of(recipe)
    if grid is None:
        return classifier
    matrices = _rounded(classifier, load_tokenizer(merged), calibration_texts(recipe), grid, recipe)
    done = _repaired(classifier, matrices, merged, recipe, cache=cache, progress=progress)
    return dequantized(classifier, done.matrices if done else matrices)


def row_losses(model: Classifier, merged: Path, recipe: Recipe, *, cache: Path) -> list[tuple[float, int]]:
    """What a classifier in torch loses on eval rows: nats of each, and 1."""
    return EvalTexts.of(_labelled_rows(merged, recipe, cache)).row_losses(model)


def layer_changes(bundle: Bundle, run_dir: RunDir, base: Path) -> Iterator[LayerChange]:
    """What became of the fine-tune in each matrix of a run's bundle; nothing where the merged model is gone."""
    if not run_dir.merged.is_dir():
        return iter(())
    merge_base = read_record(run_dir.merged).get("merge_base", "trained")
    return encoder_layers_changed(bundle, run_dir.merged, BaseTensors(run_dir.adapter, base, merge_base))


def build_classifier_bundle(
    merged: Path,
    folder: Path,
    recipe: Recipe,
    texts: Sequence[str] = (),
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Built:
    """Write a bundle into an empty folder, weights rounded as [export] says, "gptq" for `texts`.

    `cache`: a folder for tokens, if they are to be repaired on the train rows. Raises ModelError.
    """
    tokenizer, classifier = load_tokenizer(merged), load_classifier(load_merged(merged), merged)
    spec, precision, grid = classifier.spec, recipe.export.precision, _grid_of(recipe)
    matrices = _rounded(classifier, tokenizer, texts, grid, recipe) if grid else {}
    done = _repaired(classifier, matrices, merged, recipe, cache=cache, progress=progress) if cache else None
    matrices = dict(done.matrices) if done else matrices
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
            "repair": done.to_json() if done else None,
            **provenance(recipe.train.seed),
        },
    )
    return Built(write_manifest(bundle), classifier, matrices, tokenizer)


def calibration_texts(recipe: Recipe) -> list[str]:
    """Training texts that weights are rounded for; none where [export] method needs none."""
    if method_of(recipe.export) not in CALIBRATED:
        return []
    return draw_texts(examples(recipe, "train"), recipe.export.calibration_rows, seed=recipe.train.seed)


def _grid_of(recipe: Recipe) -> BundleGrid | None:
    """The grid of [export]: embeddings have its bits too, the head stays float."""
    grid = grid_of(recipe.export)
    return dataclasses.replace(grid, head_bits=grid.bits) if grid else None


def _rounded(
    classifier: Classifier, tokenizer: Any, texts: Sequence[str], grid: BundleGrid, recipe: Recipe
) -> dict[str, QuantizedMatrix]:
    """Weights on the grid by [export] method, "gptq" for the texts."""
    batches = token_batches(tokenizer, texts, max_length=classifier.spec.max_length)
    return quantize_classifier(classifier, grid, batches, method=method_of(recipe.export))


def _repaired(
    classifier: Classifier,
    matrices: dict[str, QuantizedMatrix],
    merged: Path,
    recipe: Recipe,
    *,
    cache: Path,
    progress: Progress | None,
) -> Repair | None:
    """The matrices repaired on the train rows; None where [export] repair_steps asks for none, or 8 bits need none.

    Raises DivergedError, DataError; RecipeError for rows with other labels than the classifier's.
    """
    grid = _grid_of(recipe)
    if not recipe.export.repair_steps or grid is None or grid.bits >= 8:
        return None
    task = _labelled_rows(merged, recipe, cache)
    if task.prepared.labels != classifier.spec.labels:
        raise RecipeError(
            "export.repair_steps: the train rows have other labels than the classifier",
            cure="give the rows it was trained on, or set export.repair_steps = 0",
        )
    return repair_classifier(classifier, matrices, task, progress=progress)


def _labelled_rows(merged: Path, recipe: Recipe, cache: Path) -> Classification:
    """The recipe's rows in the tokens of the merged folder's tokenizer. Raises DataError."""
    tokenizer = load_tokenizer(merged)
    prepared = prepare(recipe, tokenizer, max_length=longest_row(recipe, merged, tokenizer), cache=cache)
    return Classification(recipe, prepared, padding_id(tokenizer))


def save_tokenizer(tokenizer: Any, path: Path, *, max_length: int) -> None:
    """Write tokenizer.json so that it cuts as training did and pads nothing, whatever the base's own says."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(max_length)
    backend.save(str(path))


def token_batches(tokenizer: Any, texts: Sequence[str], *, max_length: int) -> list[tuple[Tensor, Tensor]]:
    """Ids and mask, int64 (B, T) each, of texts in batches of like length."""
    batches = []
    for places in by_length(map(len, texts), most_rows=BATCH_TEXTS):
        batch = tokenizer(
            [texts[place] for place in places],
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
