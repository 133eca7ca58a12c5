"""`edgetune export-best`: sweep what an int4 bundle can be, measure the front, choose by the user's budget.

Nothing is retrained. Every candidate is scored in torch on the eval rows, with the device's numbers, in seconds. Of
those that no other beats in both loss and bytes some are built, evenly from the smallest to the largest, and so are the
recipe's own settings; all of these are measured as bundles. The best that fits [budget] is chosen and, where export
repairs, held once more against the recipe's own settings, both repaired. Export then makes and verifies it as any.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.bundle.candidates import Measured, Point, choose, evenly, mark_front, own_point
from edgetune.bundle.sweep import SWEEPS, Sweep
from edgetune.files import write_json
from edgetune.progress import Progress, silent
from edgetune.provenance import provenance
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

MOST_BUILT = 10
"""Points of the front that are built and measured."""

Measure = Callable[[Path], Measured]


@dataclass(frozen=True)
class SearchResult:
    """All points, the one that was chosen, and why."""

    points: tuple[Point, ...]
    chosen: Point
    reason: str


def search(recipe: Recipe, run_dir: RunDir, measure: Measure, *, progress: Progress | None = None) -> SearchResult:
    """Sweep what the bundle of the run's merged model can be, see bundle/sweep.py.

    `measure` tells what a bundle folder is worth on the eval rows, and costs.

    Writes results/search.json. Memory: of a decoder the integers of every calibrated grid (ten) and of every matrix
    rounded otherwise, about 0.6 bytes a weight and grid, and the model once on one of them. Raises RunError where
    nothing fits [budget] device_memory and min_tokens_per_s, with what came nearest.
    """
    tell = progress or silent
    sweep = SWEEPS[recipe.model.task](recipe, run_dir, tell)
    points = mark_front(list(sweep.points()))
    own = own_point(points, recipe)
    front = evenly(sorted((p for p in points if p.on_front), key=lambda point: point.size_bytes), MOST_BUILT)
    built: dict[Point, Point] = {}
    for point in dict.fromkeys([*front, *([own] if own else [])]):
        tell({"stage": "search", "message": f"measuring as a bundle: {point.name}"})
        found = _measured(run_dir, point, sweep.build, measure)
        built[point] = dataclasses.replace(point, **dataclasses.asdict(found)) if found else point
    points = mark_front([built.get(point, point) for point in points])
    own = own_point(points, recipe)
    chosen, reason = choose(points, recipe, own)
    chosen, reason, finals = _finals(recipe, run_dir, sweep, measure, chosen=chosen, own=own, reason=reason, tell=tell)
    values = {"reason": reason, "chosen": dataclasses.asdict(chosen), "points": [dataclasses.asdict(p) for p in points]}
    run_dir.results.mkdir(exist_ok=True)
    write_json(
        run_dir.results / "search.json", {**values, "repaired": finals, "provenance": provenance(recipe.train.seed)}
    )
    return SearchResult(tuple(points), chosen, reason)


def _finals(
    recipe: Recipe,
    run_dir: RunDir,
    sweep: Sweep,
    measure: Measure,
    *,
    chosen: Point,
    own: Point | None,
    reason: str,
    tell: Progress,
) -> tuple[Point, str, dict[str, Any]]:
    """The better of what was chosen and the recipe's own settings, both as export makes them; why; what was measured.

    Without repair, or with the own settings chosen, it is what was chosen.
    """
    if own is None or own == chosen:
        return chosen, reason, {}
    repaired: dict[Point, Point] = {}
    for point in (chosen, own):
        tell({"stage": "search", "message": f"repairing {point.name}"})
        found = _measured(run_dir, point, sweep.finish, measure)
        if found is None:
            return chosen, reason, {}
        repaired[point] = dataclasses.replace(point, score=found.score, device_loss=found.device_loss)
    best, _ = choose(list(repaired.values()), recipe, repaired[own])
    losses = {point.name: {"score": one.score, "loss": one.device_loss} for point, one in repaired.items()}
    if best == repaired[own]:
        return (
            own,
            f"repaired, no candidate is better than the recipe's own settings (loss {best.found_loss:.4f})",
            losses,
        )
    return (
        chosen,
        f"{reason}; repaired {best.found_loss:.4f}, {repaired[own].found_loss:.4f} by the recipe's own",
        losses,
    )


def _measured(
    run_dir: RunDir, point: Point, build: Callable[[Point, Path], bool | None], measure: Measure
) -> Measured | None:
    """What the bundle of a point measures; None where `build` says that there is none to measure."""
    with tempfile.TemporaryDirectory(prefix=".search.", dir=run_dir.path) as folder:
        (made := Path(folder) / "bundle").mkdir()
        return None if build(point, made) is False else measure(made)
