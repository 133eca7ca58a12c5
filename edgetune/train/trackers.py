"""Experiment trackers through Accelerate, when the recipe asks for them. EdgeTune itself sends nothing anywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from edgetune.errors import MissingExtraError

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}


def check_trackers(names: Sequence[str]) -> None:
    """Raises MissingExtraError if the package behind one of the recipe's trackers is not installed."""
    for name in names:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise MissingExtraError(f"train.trackers: {name} is not installed", cure=f"pip install {PACKAGES[name][0]}")
