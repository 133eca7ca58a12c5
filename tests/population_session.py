"""A population without Ray: its members one after another in this process, for tests of all else."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from edgetune.tune.member import Begin, Job, Outcome, train_generation
from edgetune.tune.mutation import perturbed
from edgetune.tune.trial import Workbench


@dataclasses.dataclass
class InTurn:
    """A session in which the worst member copies the best one after each generation; `made` is where members began."""

    made: list[Begin] = dataclasses.field(default_factory=list)
    before: Callable[[Begin], object] = lambda _: None

    def __call__(self, job: Job, begins: Sequence[Begin], *, tell: Callable[[Outcome], None], **_: Any) -> None:
        """All generations."""
        bench = Workbench(job.recipe, job.folder)
        while True:
            outcomes = []
            for begin in begins:
                self.before(begin)
                self.made.append(begin)
                outcomes.append(train_generation(bench, job, begin))
                tell(outcomes[-1])
            generation = outcomes[0].generation
            if generation == job.course.generations:
                return
            ranked = sorted(outcomes, key=lambda one: float("inf") if one.eval_loss is None else one.eval_loss)
            best, worst = ranked[0], ranked[-1]
            draw = random.Random(generation)
            begins = [
                Begin(one.member, generation + 1, best.member, perturbed(best.lineage.now, job.space, draw))
                if one is worst
                else Begin(one.member, generation + 1, one.member, one.lineage.now)
                for one in outcomes
            ]
