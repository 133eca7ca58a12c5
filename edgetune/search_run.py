"""`edgetune export-best` of a run: candidates of bundle/search.py, scored on the run's eval rows."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir

MOST_ROWS = 400


def search(recipe: Recipe, run_dir: RunDir, *, progress: Progress | None = None) -> Any:
    """bundle.search.search with bundles scored on the recipe's eval rows, at most MOST_ROWS of them."""
    from edgetune.bundle import search as sweeping
    from edgetune.evaluate.evaluate import Target, evaluate
    from edgetune.evaluate.targets import run_targets
    from edgetune.evaluate.texts import EVAL_SET_FILE, prepare_eval_set
    from edgetune.model.base import base_folder

    base = base_folder(recipe.model)
    most = min(MOST_ROWS, recipe.evaluate.max_rows or MOST_ROWS)
    judged = dataclasses.replace(recipe, evaluate=dataclasses.replace(recipe.evaluate, max_rows=most))
    with tempfile.TemporaryDirectory(prefix=".search-rows.", dir=run_dir.path) as folder:
        out = Path(folder)
        prepare_eval_set(judged, run_targets(recipe, run_dir, base)["base"], out, split="eval")

        def measure(bundle: Path) -> sweeping.Measured:
            result = evaluate(Target("bundle", "candidate", bundle), out / EVAL_SET_FILE, out, progress=progress)
            speed = getattr(result.speed, "tokens_per_s", None)
            return sweeping.Measured(result.score.score, speed, result.peak_bytes)

        return sweeping.search(recipe, run_dir, measure, progress=progress)
