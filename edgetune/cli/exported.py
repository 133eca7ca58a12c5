"""What the verbs that write a bundle of a run share: its recipe, its card, and what they say at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.cli import console
from edgetune.cli.scores import check_line

if TYPE_CHECKING:
    from edgetune.bundle.place import ExportResult
    from edgetune.bundle.search import SearchResult
    from edgetune.recipe import Recipe
    from edgetune.run_dir import RunDir


def recipe_of(run_dir: RunDir, changes: Iterable[str]) -> Recipe:
    """The run's recipe with changes, called as the run is. Raises RecipeError."""
    from edgetune.recipe import load_recipe

    return dataclasses.replace(load_recipe(run_dir.recipe, changes), name=run_dir.path.resolve().name)


def write_card(source: Path, bundle: Path, progress: Any) -> None:
    """The bundle's README.md: of the run it lies in, else of the one it was made of."""
    from edgetune.report.card import write_bundle_card
    from edgetune.run_dir import RunDir, find_run

    made_of = RunDir(source) if RunDir(source).is_run else None
    write_bundle_card(bundle, find_run(bundle) or made_of, progress=progress)


def show(result: ExportResult, source: Path, *, as_json: bool, found: SearchResult | None = None) -> None:
    """The bundle, its proof, and the search that it came from, if any; then what is to be done next with it."""
    if as_json:
        console.say_json(_as_json(result, found))
        return
    for line in _front(found) if found else []:
        console.say(line)
    for check in result.verification.checks:
        console.say(check_line(dataclasses.asdict(check)))
    if result.bundle.path.resolve() == (source / "bundle").resolve() and not result.bundle.adapters:
        console.note(f"how much of the fine-tune it kept is not measured yet: edgetune verify {result.bundle.path}")
    console.say(
        f"{result.bundle.path}  {result.bundle.precision}  {result.size_bytes / 1024**2:,.1f} MiB"
        f"  (peak memory {result.peak_bytes / 1024**2:,.0f} MiB, {result.wall_s:.1f} s)"
    )


def _as_json(result: ExportResult, found: SearchResult | None) -> dict[str, Any]:
    return {
        "bundle": str(result.bundle.path),
        "adapters": list(result.bundle.adapters),
        "precision": result.bundle.precision,
        "size_bytes": result.size_bytes,
        "peak_bytes": result.peak_bytes,
        "wall_s": round(result.wall_s, 3),
        "search": dataclasses.asdict(found) if found else None,
        "verified": {
            "passed": True,
            "checks": [dataclasses.asdict(item) for item in result.verification.checks],
        },
    }


def _front(found: SearchResult) -> list[str]:
    """The front as a table, and why the chosen one was chosen."""
    lines = [f"{'candidate':<46}{'MiB':>8}{'loss':>9}{'score':>8}{'tokens/s':>10}{'memory':>10}"]
    for point in sorted(found.points, key=lambda point: point.size_bytes):
        if point.peak_bytes is None:
            continue
        score = "-" if point.score is None else f"{point.score:.1%}"
        speed = "-" if point.tokens_per_s is None else f"{point.tokens_per_s:,.0f}"
        mark = "*" if point == found.chosen else " "
        lines.append(
            f"{mark + ' ' + point.name:<46}{point.size_bytes / 1024**2:>8.2f}{point.loss:>9.4f}{score:>8}{speed:>10}"
            f"{point.peak_bytes / 1024**2:>6,.0f} MiB"
        )
    return [*lines, f"chosen (*): {found.reason}", ""]
