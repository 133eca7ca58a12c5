"""Evaluating decoders: they answer prompts, which references judge, and tell losses of the trained tokens."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.data.read import Split
from edgetune.evaluate.distance import Distance, measure_distance, write_distributions
from edgetune.evaluate.metrics import FieldScore
from edgetune.evaluate.rows import EvalSet, make_eval_set, read_eval_set
from edgetune.evaluate.score import Answer, Answerer, Score, Speed, measure_speed, score
from edgetune.evaluate.target import Loaded, Target
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import open_bundle

if TYPE_CHECKING:
    from edgetune.evaluate.text_format import TextFormat

HAS_BASE = True


def owns(_: Path) -> bool:
    """No file marks a decoder's folder."""
    return False


def with_settings_of(target: Target, recipe: Recipe) -> Recipe:
    """The recipe with a bundle's system message, where it names none itself."""
    if target.kind != "bundle":
        return recipe
    system = recipe.data.system or open_bundle(target.path).chat_format.system
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, system=system))


def rows_of(target: Target, recipe: Recipe, split: Split) -> EvalSet:
    """Encoded by the target's own tokenizer: its base's, the bundle's, the file's."""
    from edgetune.evaluate.text_format import format_of

    return _encoded(recipe, format_of(target, recipe), split)


def rows_of_base(base: Path, _: Sequence[str], recipe: Recipe, split: Split) -> EvalSet:
    """Encoded by the base's tokenizer."""
    from edgetune.evaluate.text_format import format_of_folder

    return _encoded(recipe, format_of_folder(base, recipe), split)


def load(request: Mapping[str, Any]) -> Loaded:
    """The target of a request, which scores as many of the rows as that says; distances are those of all rows."""
    whole, target = read_eval_set(Path(request["eval_set"])), _answerer(request)
    eval_set = whole.evenly(request["most_rows"])

    def distance() -> Distance | None:
        if request["distributions"] is None:
            return None
        path = Path(request["distributions"])
        if request["is_reference"]:
            write_distributions(target, whole.rows, path)
        return measure_distance(target, whole.rows, path) if path.exists() else None

    return Loaded(
        measure_speed=partial(measure_speed, target, eval_set),
        score=lambda progress: score(target, eval_set, progress=progress),
        measure_distance=distance,
    )


def read_score(values: Mapping[str, Any]) -> Score:
    """A score from its JSON values."""
    interval, fields = values["interval"], values["fields"]
    return Score(
        **{
            **values,
            "interval": tuple(interval) if interval else None,
            "loss_interval": tuple(values["loss_interval"]),
            "fields": FieldScore(**{**fields, "f1_interval": tuple(fields["f1_interval"])}) if fields else None,
        }
    )


def read_speed(values: Mapping[str, Any]) -> Speed:
    """A speed from its JSON values."""
    return Speed(**values)


def score_live(
    model: Any, tokenizer: Any, rows: EvalSet, *, progress: Progress | None = None
) -> tuple[Score, Sequence[Answer]]:
    """Scores of a causal language model of transformers."""
    from edgetune.evaluate.torch_model import TorchAnswerer

    return score(TorchAnswerer(model, tokenizer), rows, progress=progress)


def with_adapter(base: Any, folder: Path, _: Recipe) -> Any:
    """The base with a saved adapter."""
    from edgetune.lora import adapter

    return adapter.load(base, folder)


def _encoded(recipe: Recipe, texts: TextFormat, split: Split) -> EvalSet:
    return make_eval_set(
        recipe, texts.tokenizer, eos_ids=texts.eos_ids, context_length=texts.context_length, split=split
    )


def _answerer(request: Mapping[str, Any]) -> Answerer:
    """The target of a request; of a bundle or a .gguf file without torch."""
    if request["kind"] == "bundle":
        return importlib.import_module("edgetune.evaluate.bundle").BundleAnswerer(Path(request["path"]))
    if request["kind"] == "gguf":
        return importlib.import_module("edgetune.evaluate.gguf").GgufAnswerer(Path(request["path"]))
    return importlib.import_module("edgetune.evaluate.torch_model").load(request)
