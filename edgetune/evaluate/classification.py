"""Evaluating classifiers: they give texts labels, once their probabilities are calibrated on the eval rows."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.data.read import Split
from edgetune.evaluate.label_rows import LabelSet, make_calibration_set, make_label_set, read_label_set
from edgetune.evaluate.labeller import (
    LabelAnswer,
    Labeller,
    LabelScore,
    Latency,
    latency_texts,
    measure_latency,
    score,
)
from edgetune.evaluate.target import Loaded, Target
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import check_hashes, open_bundle

HAS_BASE = False


def owns(folder: Path) -> bool:
    """Whether it holds what a head's tensors mean."""
    from edgetune.model.classifier import SPEC

    return (folder / SPEC).is_file()


def with_settings_of(target: Target, recipe: Recipe) -> Recipe:
    """The recipe with the target's kind of labels, and its label for texts out of scope where it has one."""
    spec = _spec(target)
    outside = spec.out_of_scope_label or recipe.classify.out_of_scope_label
    return recipe.with_classify(multi_label=spec.multi_label, out_of_scope_label=outside)


def rows_of(target: Target, recipe: Recipe, _: Split) -> LabelSet:
    """The test rows, else the eval rows, with the numbers that the target has for labels; whatever the split."""
    return make_label_set(recipe, _spec(target).labels)


def rows_of_base(_: Path, labels: Sequence[str], recipe: Recipe, split: Split) -> LabelSet:
    """Eval rows are calibrated on themselves, test rows on the eval rows."""
    if split == "test":
        return make_label_set(recipe, labels)
    rows = make_calibration_set(recipe, labels)
    return dataclasses.replace(rows, rows=rows.calibration, scores_calibration_rows=True)


def load(request: Mapping[str, Any]) -> Loaded:
    """Every row is labelled; labels have no distance."""
    label_set, (target, own) = read_label_set(Path(request["eval_set"])), _labeller(request)
    return Loaded(
        measure_speed=partial(measure_latency, target, latency_texts(label_set)),
        score=lambda progress: score(target, label_set, calibrated=own, progress=progress),
        measure_distance=lambda: None,
    )


def read_score(values: Mapping[str, Any]) -> LabelScore:
    """A score from its JSON values."""
    return LabelScore(**{**values, **{name: tuple(values[name]) for name in ("interval", "loss_interval")}})


def read_speed(values: Mapping[str, Any]) -> Latency:
    """A speed from its JSON values."""
    return Latency(**values)


def score_live(
    model: Any, tokenizer: Any, rows: LabelSet, *, progress: Progress | None = None
) -> tuple[LabelScore, Sequence[LabelAnswer]]:
    """Scores of an encoder with its head."""
    from edgetune.evaluate.torch_labeller import TorchLabeller

    return score(TorchLabeller(model.eval(), tokenizer), rows, progress=progress)


def with_adapter(base: Any, folder: Path, recipe: Recipe) -> Any:
    """The encoder with a saved adapter and the head beside it."""
    from edgetune.lora import adapter
    from edgetune.model.classifier import drop_unused_pooler, load_classifier

    drop_unused_pooler(base, recipe.classify.pooling)  # before the adapter: it has no weights for it
    return load_classifier(adapter.load(base, folder), folder)


def _spec(target: Target) -> Any:
    """What a target says of its labels: `labels` in the order of its logits, `multi_label`, `out_of_scope_label`."""
    from edgetune.model.classifier import read_spec

    return open_bundle(target.path).classifier_format if target.model is None else read_spec(target.path)


def _labeller(request: Mapping[str, Any]) -> tuple[Labeller, tuple[float, float | None] | None]:
    """The target of a request, and temperature and threshold where it has its own; of a bundle without torch."""
    if request["kind"] == "bundle":
        from edgetune.runtime.classifier import Classifier

        target = Classifier(request["path"])
        check_hashes(target.bundle)
        return target, (target.format.temperature, target.format.threshold)
    return importlib.import_module("edgetune.evaluate.torch_labeller").load(request), None
