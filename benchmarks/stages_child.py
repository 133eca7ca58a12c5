"""One run of benchmarks.stages in a process of its own: seconds and memory of its stages. Prints JSON.

Arguments: recipe, run folder, settings as after --set.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.files import read_json
from edgetune.pipeline import run
from edgetune.plan import duration, plan, stage_seconds
from edgetune.process_memory import resident_bytes
from edgetune.recipe import Recipe, load_recipe
from edgetune.run_dir import RunDir

STAGES = ("train", "evaluations", "merge", "calibration", "repair", "graph", "verification")
EXPORT = {"putting the weights": "calibration", "building": "graph", "verifying": "verification"}
"""How the export's messages begin -> the stage that begins with each."""
SAMPLE_S = 0.02


class Watch:
    """What a run tells of its stages, and this process's memory in each: `tell` is the run's progress."""

    def __init__(self) -> None:
        self.stage, self.since = "plan", time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._begin("")
        self._is_over.set()
        self._thread.join()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Hear of an event."""
        stage = stage_of(event)
        if stage and stage != self.stage:
            self._begin(stage)

    def _begin(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now

    def _sample(self) -> None:
        while not self._is_over.wait(SAMPLE_S):
            stage = self.stage
            self.peaks[stage] = max(self.peaks.get(stage, 0), resident_bytes())


def stage_of(event: Mapping[str, Any]) -> str | None:
    """The stage that an event belongs to; None of one that says nothing of it."""
    name, message = str(event["stage"]), str(event.get("message", ""))
    if name.startswith("evaluate"):
        return "evaluations"
    if name == "export":
        return next((stage for start, stage in EXPORT.items() if message.startswith(start)), None)
    return name if name in ("train", "merge", "repair") else None


def measure(recipe: Recipe, run_dir: RunDir) -> dict[str, Any]:
    """Run a recipe; what each stage took and what was planned for it."""
    planned = _planned(recipe)
    with Watch() as watch:
        done = run(recipe, run_dir, progress=watch.tell)
    taken = watch.seconds | _whole_stages(done.summary, watch)
    peaks = watch.peaks | {"train": max(watch.peaks.get("train", 0), done.summary["train"]["peak_bytes"])}
    peaks["evaluations"] = peaks.get("evaluations", resident_bytes()) + _child_bytes(run_dir)
    stages = {
        name: {
            "seconds": taken[name],
            "mib": peaks[name] / 2**20 if name in peaks else None,
            **planned.get(name, {"planned_seconds": None, "planned_mib": None}),
        }
        for name in STAGES
        if name in taken
    }
    return {"stages": stages, "parameters": done.summary["estimate"]["base_parameters"]}


def _planned(recipe: Recipe) -> dict[str, dict[str, float | None]]:
    """What plan says of each stage."""
    found = plan(recipe)
    seconds = stage_seconds(found, duration(found))
    return {
        stage.name: {"planned_seconds": seconds.get(stage.name), "planned_mib": stage.peak_bytes / 2**20}
        for stage in found.stages
    }


def _whole_stages(summary: Mapping[str, Any], watch: Watch) -> dict[str, float]:
    """Seconds of what the run has measured as a whole: steps of training; all evaluations, those between steps too;
    of the export what its other stages leave.
    """
    steps, stage_s = summary["train"]["train_s"], summary["stage_s"]
    scored = sum(seconds for name, seconds in stage_s.items() if name.startswith("evaluate"))
    parts = sum(watch.seconds.get(stage, 0.0) for stage in ("calibration", "repair", "graph"))
    return {
        "train": steps,
        "evaluations": scored + stage_s["train"] - steps,
        "merge": stage_s["merge"],
        "verification": stage_s["export"] - parts,
    }


def _child_bytes(run_dir: RunDir) -> int:
    """The most that the process of a measured target held."""
    files = [path for path in run_dir.results.glob("*.json") if path.with_name(f"{path.stem}-answers.jsonl").exists()]
    return max(int(read_json(path)["scoring_peak_bytes"]) for path in files)


def main() -> None:
    """Measure, and print JSON."""
    recipe, folder, *settings = sys.argv[1:]
    print(json.dumps(measure(load_recipe(Path(recipe), settings), RunDir(Path(folder)))))


if __name__ == "__main__":
    main()
