"""Recipes of classifiers: [classify], defaults of their own, and what of other tables has no place in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgetune.metric_names import LABEL_METRICS
from edgetune.recipe.values import at, filled

if TYPE_CHECKING:
    from edgetune.recipe.recipe import Recipe


@dataclass(frozen=True)
class ClassifyTable:
    """[classify]: what model.task = "classification" adds."""

    pooling: Literal["mean", "cls", "pooler"] = "mean"
    """One vector a text: the mean over its tokens, the first token, or the base's own pooler over that."""
    head: Literal["cosine", "linear"] = "cosine"
    """cosine: `scale` times the cosine with each label's direction, which starts at the mean of its training texts."""
    scale: float = at(20.0, above=0.0)
    """Of the cosine head, whose cosines lie between -1 and 1: the higher, the surer its probabilities can be."""
    head_learning_rate: Literal["auto"] | float = at("auto", above=0.0)
    """auto: ten times train.learning_rate."""
    multi_label: bool = False
    """A text may have any number of labels: a list, or a text with `label_separator` between them."""
    label_separator: str = filled(",")
    """Between the labels of a text with several, where they are one text."""
    label_smoothing: float = at(0.1, least=0.0, most=0.9)
    """Share of the target that is spread over all labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a label's rows weigh rows / (labels * rows of the label), for skewed data."""
    out_of_scope_label: str | None = filled(None)
    """The label of rows that belong to no other: the bundle answers them with "unknown". Training rows that have it
    teach the head, eval rows set the threshold; either kind may be missing."""
    false_accept_rate: float | None = at(None, least=0.0, most=1.0)
    """Least sure answers become "unknown": at most this share of eval rows out of scope (or, where there are none, of
    wrongly answered ones) is still given a label. Without it, eval rows out of scope set the threshold with the highest
    mean of in-scope accuracy and out-of-scope recall."""
    positive_label: str | None = filled(None)
    """The label whose F1 the metric "f1" is."""


CLASSIFIER_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"max_seq_len": 128, "too_long": "truncate"},
    "train": {"epochs": 8.0, "batch_size": 32, "gradient_accumulation_steps": 1, "schedule": "linear"},
    "export": {"block_size": 32, "repair_steps": 0},
    "evaluate": {"metric": "accuracy"},
}
"""What a key is without a word in the recipe where model.task is "classification"; other keys as in the tables."""

DECODER_KEYS = (
    "data.format",
    "data.system",
    "data.loss_on",
    "data.packing",
    "train.fused_loss",
    "export.head_bits",
    "export.int8_layers",
    "export.max_length",
    "evaluate.max_new_tokens",
)
"""What changes nothing of a classifier: a recipe that is shared between tasks may have it."""


def problem_with_classifier(recipe: Recipe) -> str | None:
    """What in a recipe cannot be of a classifier, if anything."""
    export, metric = recipe.export, recipe.evaluate.metric
    problems = {
        'export.method = "awq": is for decoders; a classifier takes "gptq"': export.method == "awq",
        'export.precision = "int2": is for decoders; a classifier takes "int4"': export.precision == "int2",
        'tune.objectives: "tokens_per_s" is of decoders; leave it out of a classifier': (
            "tokens_per_s" in recipe.tune.objectives
        ),
        "model.embedding_quantization: is of decoders; leave it out of a classifier": (
            recipe.model.embedding_quantization != "none"
        ),
        "data.swapped_copies: is for answers in JSON; leave it out of a classifier": recipe.data.swapped_copies > 0,
        "lora.train_embeddings: a classifier's embedding stays as it is; leave it out": recipe.lora.train_embeddings,
        f'evaluate.metric = "{metric}": a classifier has {", ".join(LABEL_METRICS)}': (metric not in LABEL_METRICS),
        'evaluate.metric = "f1": name the label in classify.positive_label': (
            metric == "f1" and recipe.classify.positive_label is None
        ),
        "classify.out_of_scope_label: with multi_label a text that no label fits has none; leave this key out": (
            recipe.classify.multi_label and recipe.classify.out_of_scope_label is not None
        ),
    }
    return next((problem for problem, is_there in problems.items() if is_there), None)
