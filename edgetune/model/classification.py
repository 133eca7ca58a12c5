"""What a classifier's own head costs a training step (model/classifier.py has the head itself)."""

from __future__ import annotations

from edgetune.recipe import Recipe

LOGITS_BYTES = {"cosine": 5 * 4, "linear": 4 * 4}
"""Of one label of a text: logits, scaled ones, log-probabilities and gradients, float32."""


def head_parameters(recipe: Recipe, labels: int, hidden: int) -> int:
    """Weights of the head: a direction for each label, and a bias where it is linear."""
    return labels * (hidden + (recipe.classify.head == "linear"))


def head_bytes(recipe: Recipe, labels: int, parameters: int) -> int:
    """What the loss of a micro-batch holds for each label of each text, and a cosine head's directions, float32 too:
    normalised, and their gradient.
    """
    kind = recipe.classify.head
    return recipe.batch_size * labels * LOGITS_BYTES[kind] + (8 * parameters if kind == "cosine" else 0)
