"""Divergence: how it is told from a bad stretch and from overfitting. Pure; State keeps what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.errors import DivergedError

MARGIN = 0.1
"""Nats that a loss which is far above its best is above it at least."""
START_FACTOR = 1.5
"""Losses beyond this many times the untrained one are far, however bad the best evaluation was."""
FAR_EVALUATIONS = 2
"""So many evaluations in a row that are far above the best are a divergence."""
CUT = 0.3
"""What a restart multiplies the learning rate by: two of them leave a tenth."""


class Diverged(DivergedError):
    """A training whose loss is no number, or stays far above what it was. Restarts catch it while there are any left.

    `reason` says which loss it was, `step` the optimizer step.
    """

    def __init__(self, step: int, reason: str, *, restarts: int = 0) -> None:
        tried = f", also after {restarts} restarts at lower learning rates" if restarts else ""
        super().__init__(
            f"step {step}: {reason}; the adapter has diverged{tried}",
            cure="lower train.learning_rate, or look at the data of this step; the last checkpoint is sound",
        )
        self.step = step
        self.reason = reason


@dataclass(frozen=True)
class Restart:
    """One return to a sound place."""

    diverged_step: int
    reason: str
    step: int
    """Where the training went back to; 0 is its start."""
    learning_rate: float
    """With which it went on, before what the schedule makes of it."""


@dataclass(frozen=True)
class Divergence:
    """What is known about it after an evaluation."""

    share: float = 1.0
    """Of the learning rate, after restarts."""
    sound_step: int = 0
    """The last evaluation that was not far above the best; what was before it is good to go back to."""
    far_evaluations: int = 0
    start_loss: float | None = None
    """Training loss of the first step, which no step has changed yet."""
    first_eval_loss: float | None = None
    best_train_loss: float | None = None
    """Least mean training loss between two evaluations."""
    restarts: tuple[Restart, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Divergence:
        """As dataclasses.asdict gave it."""
        return cls(**{**values, "restarts": tuple(Restart(**item) for item in values.get("restarts", ()))})


def after_evaluation(
    divergence: Divergence, step: int, *, train_loss: float, eval_loss: float, best_eval_loss: float
) -> Divergence:
    """What is known after one more evaluation. Raises Diverged if it is the last of too many that are far above.

    Far is twice the best eval loss, or where half of what was learned is gone, whichever comes first; or well above the
    untrained loss. The training loss has to be as far: where it is not, the eval loss shows overfitting.
    """
    best = train_loss if divergence.best_train_loss is None else min(divergence.best_train_loss, train_loss)
    first = eval_loss if divergence.first_eval_loss is None else divergence.first_eval_loss
    divergence = dataclasses.replace(divergence, best_train_loss=best, first_eval_loss=first)
    far = best_eval_loss + max(MARGIN, min(best_eval_loss, (first - best_eval_loss) / 2))
    is_far = eval_loss > far and train_loss > max(far, best + MARGIN)
    if divergence.start_loss is not None:
        is_far |= min(eval_loss, train_loss) > START_FACTOR * divergence.start_loss + MARGIN
    if not is_far:
        return dataclasses.replace(divergence, far_evaluations=0, sound_step=step)
    if divergence.far_evaluations + 1 >= FAR_EVALUATIONS:
        raise Diverged(step, f"the eval loss is {eval_loss:.4f}, after {best_eval_loss:.4f} at its best")
    return dataclasses.replace(divergence, far_evaluations=divergence.far_evaluations + 1)
