"""A worker of a study in a process of its own, on trainings that cost nothing: for tests of many workers.

python tests/tune_worker.py RECIPE FOLDER SECONDS OVERRIDES: a trial takes so many seconds; prints what it is told, and
last how many trainings it made. With TUNE_WORKER_DIES_AT=TEXT in the environment it kills itself (SIGKILL) when it is
told a line that begins so. With TUNE_WORKERS=COUNT its first training ends when as many workers are in theirs; they are
known by files two folders above FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from tune_bench import PaperBench

from edgetune.recipe import load_recipe
from edgetune.tune import study
from edgetune.tune.search import search
from edgetune.tune.study import StudyDir


def main(recipe: str, folder: str, seconds: str, *overrides: str) -> None:
    """One worker."""

    def before(_: Any) -> None:
        print("training", flush=True)
        time.sleep(float(seconds))
        if count := int(os.environ.get("TUNE_WORKERS", 0)):
            (Path(folder).parents[1] / f"{os.getpid()}.training").touch()
            while len(list(Path(folder).parents[1].glob("*.training"))) < count:
                time.sleep(0.05)

    bench = PaperBench(before=before)
    study.Workbench = lambda *_: bench  # type: ignore[assignment,misc]

    def say(event: Any) -> None:
        if "message" in event:
            print(event["message"], flush=True)
            if (text := os.environ.get("TUNE_WORKER_DIES_AT")) and event["message"].startswith(text):
                os.kill(os.getpid(), signal.SIGKILL)

    search(load_recipe(Path(recipe), overrides), StudyDir(Path(folder)), progress=say)
    print(f"made {len(bench.seen)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
