"""The export stage: merged model in the run folder -> verified bundle in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.export.verify import Verification
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import Bundle

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class ExportResult:
    """A bundle and the proof of it."""

    bundle: Bundle
    verification: Verification
    size_bytes: int
    peak_bytes: int
    """Highest resident memory of the process while exporting and verifying."""
    wall_s: float


def export(recipe: Recipe, run_dir: RunDir, *, force: bool = False, progress: Progress | None = None) -> ExportResult:
    """Build runs/x/bundle from runs/x/merged, verify it, and put it in place only if it holds.

    A bundle that fails is left as runs/x/bundle.failed, marked unverified. Raises CheckError (which names the checks that
    failed), ModelError for an architecture that cannot be exported (before any work), RunError if there is no merged model
    or a bundle is there and `force` is not given.
    """
    ...


def export_folder(merged: Path, out: Path, recipe: Recipe, *, progress: Progress | None = None) -> Bundle:
    """The bundle of a Hugging Face folder, not verified: graph, configuration, tokenizer, edgetune.json."""
    ...
