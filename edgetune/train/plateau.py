"""schedule = "plateau": the learning rate falls where the eval loss does not. Pure; State keeps what it returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

THRESHOLD = 1e-3
"""An eval loss is better if it is lower by this share: less is the flat end of a curve, on which a lower rate helps."""
FACTOR = 0.5
"""What a cut multiplies the share by; where one is too little, another follows after as many evaluations."""


@dataclass(frozen=True)
class Plateau:
    """What the eval curve has made of the learning rate so far."""

    share: float = 1.0
    """Of the schedule's learning rate."""
    best_loss: float | None = None
    waited: int = 0
    """Evaluations without a better loss, since the last better one or the last cut."""
    cuts: int = 0


def after_evaluation(plateau: Plateau, eval_loss: float, *, patience: int, least: float) -> Plateau:
    """The plateau after one more evaluation: `patience` of them without a better loss multiply the share by FACTOR.

    The share never falls below `least`. Source: the rule of torch's ReduceLROnPlateau, with relative threshold.
    """
    if plateau.best_loss is None or eval_loss < plateau.best_loss * (1.0 - THRESHOLD):
        return dataclasses.replace(plateau, best_loss=eval_loss, waited=0)
    waited = plateau.waited + 1
    share = max(plateau.share * FACTOR, least)
    if waited < patience or share >= plateau.share:
        return dataclasses.replace(plateau, waited=waited)
    return dataclasses.replace(plateau, share=share, waited=0, cuts=plateau.cuts + 1)
