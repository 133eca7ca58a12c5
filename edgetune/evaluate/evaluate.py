"""The evaluate stage: a base, adapter, merged model or bundle -> results/<target>.json and its answers.

Each target is measured in a fresh process, so that its peak memory is its own and a bundle runs without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetune.evaluate.score import Score, Speed
from edgetune.recipe import ModelTable

Progress = Callable[[Mapping[str, Any]], None]
Kind = Literal["base", "tuned", "merged", "bundle"]


@dataclass(frozen=True)
class Target:
    """What is measured."""

    kind: Kind
    name: str
    """Names the files in results/."""
    path: Path
    """Base or merged: Hugging Face folder; tuned: adapter folder; bundle: bundle folder."""
    model: ModelTable | None = None
    """How base and tuned are loaded; None for a bundle."""


@dataclass(frozen=True)
class Result:
    """One target's measurements."""

    target: Target
    score: Score
    speed: Speed | None
    disk_bytes: int
    """Files one would ship: base folder; base and adapter; merged folder; bundle."""
    peak_bytes: int
    """Highest resident memory of the target's own process: loading it and answering one prompt at a time."""
    scoring_peak_bytes: int
    """The same, batched scoring included."""
    wall_s: float


def evaluate(target: Target, eval_set: Path, out: Path, *, progress: Progress | None = None) -> Result:
    """Measure one target on an eval set file; writes out/<name>.json (with provenance) and out/<name>-answers.jsonl.

    Raises what the target's process raised (ModelError, BundleError, CheckError), OutOfMemoryError if it was killed.
    """
    ...
