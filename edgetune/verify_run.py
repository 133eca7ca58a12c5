"""What a run's bundle kept of its fine-tune: measured anew, judged, refused or accepted. `edgetune verify` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.errors import CheckError, RunError
from edgetune.hashes import hash_tree
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import DISTRIBUTIONS, RunDir


def verify(recipe: Recipe, run_dir: RunDir, *, force: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure a run's base, fine-tune and bundle anew, and judge what the bundle kept; all in results/verify.

    Returns and writes survival.json; `force` accepts a bundle that is refused, which is recorded. Raises BundleError
    for files that are not what was exported, CheckError for a bundle that is refused, RunError where one is missing.
    """
    from edgetune.bundle.survival import judge
    from edgetune.evaluate.evaluate import evaluate
    from edgetune.evaluate.targets import run_targets
    from edgetune.evaluate.texts import EVAL_SET_FILE, prepare_eval_set
    from edgetune.model.base import base_folder
    from edgetune.report.card import write_cards
    from edgetune.runtime.bundle import check_hashes, open_bundle

    check_hashes(open_bundle(run_dir.bundle))
    base = base_folder(recipe.model)
    targets, out = run_targets(recipe, run_dir, base), run_dir.results / "verify"
    if "base" in targets and not run_dir.merged.is_dir():  # without a base no change is compared matrix by matrix
        raise RunError(
            f"{run_dir.merged}: no merged model to compare the bundle with", cure=f"edgetune merge {run_dir.path}"
        )
    out.mkdir(parents=True, exist_ok=True)
    prepare_eval_set(recipe, next(iter(targets.values())), out)
    for name in ("tuned", "base", "bundle"):
        if name in targets:
            evaluate(targets[name], out / EVAL_SET_FILE, out, distributions=out / DISTRIBUTIONS, progress=progress)
    survival = judge(recipe, run_dir, base, out, is_accepted=force or accepted(run_dir))
    if survival["accepted"]:
        run_dir.update({"accepted": bundle_hash(run_dir.bundle)})
    write_cards(run_dir, progress=progress)
    refuse_lost_gain(run_dir, survival)
    return survival


def refuse_lost_gain(run_dir: RunDir, survival: Mapping[str, Any]) -> None:
    """Raises CheckError for a bundle that is not the fine-tune, by the limits of [export], unless it was accepted."""
    if not survival["passed"]:
        raise CheckError(
            f"{run_dir.bundle}: {survival['verdict']}",
            cure=f"{survival['cure']}; or ship it all the same: edgetune verify {run_dir.bundle} --force",
        )


def accepted(run_dir: RunDir) -> bool:
    """Whether the bundle as it is now was accepted with `edgetune verify --force`."""
    return bool(run_dir.read().get("accepted") == bundle_hash(run_dir.bundle))


def bundle_hash(path: Path) -> str:
    """SHA-256 over a bundle's files but its manifest, to which verdicts are added later."""
    from edgetune.runtime.bundle import MANIFEST

    return hash_tree(path, without=MANIFEST)
