"""Where a training stands: what a checkpoint keeps beside weights, optimizer and random generators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.train.divergence import Divergence
from edgetune.train.fit import Position
from edgetune.train.overfitting import Overfitting
from edgetune.train.plateau import Plateau


@dataclass
class State(Position):
    """Where a training stands after an optimizer step. The loop's only mutable facts beside weights and optimizer."""

    best_loss: float | None = None
    best_step: int = 0
    whole_loss: float | None = None
    """On all eval rows, where the others were on some of them and the last step is the best."""
    evaluations_since_best: int = 0
    eval_loss: float | None = None
    train_loss: float = 0.0
    """Mean over the steps since the last evaluation, in nats per token, and how many tokens that is."""
    train_loss_tokens: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    train_s: float = 0.0
    """Seconds in optimizer steps."""
    wall_s: float = 0.0
    """Seconds in the loop, evaluations and checkpoints included, over all starts."""
    eval_pieces: int = 1
    """Into how many a batch of an evaluation is cut, since memory ran out in one."""
    is_over: bool = False
    """Early stopping has ended it."""
    plateau: Plateau = field(default_factory=Plateau)
    divergence: Divergence = field(default_factory=Divergence)
    overfitting: Overfitting = field(default_factory=Overfitting)

    @property
    def rate_share(self) -> float:
        """What is left of the schedule's learning rate."""
        return self.plateau.share * self.divergence.share

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> State:
        """A state as dataclasses.asdict gave it."""
        plateau = Plateau(**values.get("plateau", {}))
        divergence = Divergence.from_json(values.get("divergence", {}))
        overfitting = Overfitting.from_json(values.get("overfitting", {}))
        return cls(**{**values, "plateau": plateau, "divergence": divergence, "overfitting": overfitting})
