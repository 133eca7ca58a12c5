"""One measurement in a process of its own: `python -m edgetune.bench.child`, started by measure.py.

A request says "measure", one of MEASURES, and which target, as evaluate's requests do.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from edgetune.bench import harness
from edgetune.bench.settings import Measure
from edgetune.bench.task import TASKS
from edgetune.child_process import answer
from edgetune.progress import Progress


def main() -> int:
    """Measure what stdin asks for."""
    return answer(measure)


def measure(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The numbers of one request."""
    return MEASURES[request["measure"]](request, progress)


def measure_machine(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """What this machine can do at best with as many threads: bytes read and float32 operations a second.

    For device "cuda" those of the GPU: bytes copied (read and written), and operations in bfloat16.
    """
    from edgetune.bench.peaks import cpu_peaks, cuda_peaks

    progress({})
    return cuda_peaks() if request["device"] == "cuda" else cpu_peaks(request["threads"])


MEASURES: dict[str, Measure] = {
    "machine": measure_machine,
    "lm-eval": harness.measure_task,
    **{name: measure for task in TASKS.values() for name, measure in task.MEASURES.items()},
}

if __name__ == "__main__":
    sys.exit(main())
