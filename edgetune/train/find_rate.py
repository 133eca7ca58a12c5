"""The learning-rate finder: one short training whose rate rises from step to step, and where its loss falls fastest.

In the flow: recipe -> the parts of its training -> steps at rising rates on its own rows -> a suggestion, a picture.
Nothing of it is kept: the adapter is thrown away.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.errors import RecipeError
from edgetune.figure import figure
from edgetune.model.memory import give_back_memory
from edgetune.progress import Progress, silent
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.train.curve import moving_average
from edgetune.train.divergence import Diverged
from edgetune.train.fit import Position, fit
from edgetune.train.setup import set_up

LEAST, MOST = 1e-6, 1.0
"""Learning rates of the first and the last step."""
STEPS = 100
SMOOTHING = 0.8
"""Of the loss before, in its moving average."""
FAR = 4.0
"""The test ends where the smoothed loss has risen by so many times what it had fallen by, and by a half at least."""
LEAST_FALL = 0.02
"""Share of the loss that has to be lost: less is noise."""
SAFETY = 10.0
"""How far below the rate of the lowest loss one that is safe lies."""


@dataclass(frozen=True)
class RateRange:
    """What a range test found."""

    suggested: float
    """The geometric mean of `steepest` and `safe`."""
    steepest: float
    """Where the smoothed loss falls fastest over the logarithm of the rate."""
    safe: float
    """A tenth of the rate at which the smoothed loss is lowest."""
    lowest: float
    diverged: float | None
    """Where the test ended early, the loss far too high or no number."""
    recipe_rate: float
    """What the recipe has, "auto" decided."""
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step, nats per trained token (or text), before it was made."""
    smoothed: tuple[float, ...]


def find_rate(
    recipe: Recipe, run_dir: RunDir, *, steps: int = STEPS, base: Any = None, progress: Progress | None = None
) -> RateRange:
    """Raise the learning rate from LEAST to MOST over so many steps of the recipe's training, until it diverges.

    Writes nothing but the cache of tokenised rows into run_dir. Raises RecipeError if the loss never falls, and what
    set_up raises. Source: Smith 2015, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section
    3.3; the loss smoothed and its steepest fall taken as in fastai.
    """
    notify = progress or silent
    table = dataclasses.replace(recipe.train, max_steps=steps, trackers=(), divergence_restarts=0)
    run_dir.create()
    parts = set_up(dataclasses.replace(recipe, train=table), run_dir, "", _without_steps(notify), base=base)
    rate_of = partial(_rising_rate, steps=steps)
    rates: list[float] = []
    losses: list[float] = []
    diverged = None
    try:
        for step in fit(dataclasses.replace(parts.training, learning_rate=rate_of), Position()):
            rates.append(step.learning_rate)
            losses.append(step.loss)
            event = {"step": step.number, "steps": steps, "loss": step.loss, "learning_rate": step.learning_rate}
            notify({"stage": "find-lr", **event})
            if _is_far(moving_average(losses, kept=SMOOTHING)):
                diverged = step.learning_rate
                break
    except Diverged as error:
        diverged = rate_of(error.step)
    give_back_memory()
    return suggest(rates, losses, diverged=diverged, recipe_rate=parts.learning_rate, name=recipe.name)


def _rising_rate(step: int, *, steps: int) -> float:
    return LEAST * (MOST / LEAST) ** ((step - 1) / max(1, steps - 1))


def suggest(
    rates: Sequence[float], losses: Sequence[float], *, diverged: float | None, recipe_rate: float, name: str = "recipe"
) -> RateRange:
    """What losses at rising rates say. Raises RecipeError if they never fall."""
    smoothed = moving_average(losses, kept=SMOOTHING)
    lowest = int(np.argmin(smoothed)) if smoothed else 0
    if lowest < 2 or smoothed[lowest] > (1 - LEAST_FALL) * smoothed[0]:
        raise RecipeError(
            f"{name}: the loss falls at no learning rate between {LEAST:g} and {MOST:g}",
            cure="see whether the rows hold anything to learn, or raise the batch size: the loss is less noisy then",
        )
    slopes = np.gradient(np.array(smoothed), np.log(np.array(rates)))
    steepest = float(rates[int(np.argmin(slopes[: lowest + 1]))])
    safe = float(rates[lowest]) / SAFETY
    return RateRange(
        suggested=float(f"{math.sqrt(steepest * safe):.2g}"),
        steepest=steepest,
        safe=safe,
        lowest=float(rates[lowest]),
        diverged=diverged,
        recipe_rate=recipe_rate,
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
    )


def draw_rates(found: RateRange, out: Path, *, title: str, per: str) -> None:
    """Loss, in nats per `per`, over learning rate as a PNG, with what is suggested. Raises RunError."""
    with figure(out, (7.0, 4.0)) as drawn:
        axes = drawn.add_subplot()
        axes.plot(found.rates, found.losses, color="tab:blue", alpha=0.25, linewidth=0.8)
        axes.plot(found.rates, found.smoothed, color="tab:blue", label="training loss (moving average)")
        for rate, name, color in (
            (found.suggested, "suggested", "tab:green"),
            (found.recipe_rate, "the recipe's", "tab:gray"),
            (found.lowest, "lowest loss", "tab:orange"),
        ):
            axes.axvline(rate, color=color, linestyle="--", linewidth=1.0, label=f"{name}: {rate:.2e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"loss (nats per {per})", title=title)
        axes.set_ylim(top=1.1 * max(found.losses[: found.rates.index(found.lowest) + 1]))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)


def _is_far(smoothed: Sequence[float]) -> bool:
    """Whether the loss has risen far above its lowest."""
    fallen = smoothed[0] - min(smoothed)
    return smoothed[-1] > min(smoothed) + max(FAR * fallen, 0.5 * smoothed[0])


def _without_steps(notify: Progress) -> Progress:
    """Progress without the line about steps and rate, which are not those of the test."""

    def tell(event: Mapping[str, Any]) -> None:
        if " steps, learning rate " not in str(event.get("message", "")):
            notify({**event, "stage": "find-lr"})

    return tell
