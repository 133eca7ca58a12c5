"""What the stages of a run share: recipe and folder, what was measured, and which stages are up to date."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune.hashes import hash_file, hash_tree
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.run_dir import RunDir


@dataclass
class RunState:
    """A run under way."""

    recipe: Recipe
    run_dir: RunDir
    progress: Progress | None
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took, now or when it was done."""
    peak_bytes: int = 0
    """Highest memory of this process and the one it started, together; with a GPU, that of the GPU."""

    def see_memory(self, size_bytes: int) -> None:
        """A measurement of memory, which may be the highest."""
        self.peak_bytes = max(self.peak_bytes, size_bytes)

    def say(self, stage: str, message: str) -> None:
        """A line about a stage, for people."""
        if self.progress:
            self.progress({"stage": stage, "message": message})

    def stage(self, name: str, inputs: str, output: Path, work: Callable[[], Any]) -> str:
        """Do a stage unless it finished with these inputs and left this output; the output's hash."""
        record = self.run_dir.read().get("stages", {}).get(name, {})
        if self.run_dir.is_current(name, inputs) and output.exists() and record.get("output") == _hash(output):
            self.stage_s[name] = record["seconds"]
            self.say(name, "up to date")
            return str(record["output"])
        started = time.perf_counter()
        self.run_dir.forget(name)
        work()
        made = _hash(output)
        self.stage_s[name] = round(time.perf_counter() - started, 3)
        self.run_dir.finish(name, inputs, output=made, seconds=self.stage_s[name])
        return made


def _hash(path: Path) -> str:
    from edgetune.evaluate.targets import is_bundle
    from edgetune.verify_run import bundle_hash

    if not path.is_dir():
        return hash_file(path)
    return bundle_hash(path) if is_bundle(path) else hash_tree(path)
