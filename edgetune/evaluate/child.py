"""One target measured in a process of its own: `python -m edgetune.evaluate.child`, started by evaluate.py.

Reads a request (JSON) on stdin; writes events, then the result or an error, one JSON object a line, on stdout.
For a bundle it imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from edgetune.child_process import answer
from edgetune.evaluate.task import TASKS
from edgetune.process_memory import peak_resident_bytes
from edgetune.progress import Progress


def main() -> int:
    """Measure what stdin asks for; the exit code says whether a result was written."""
    return answer(measure)


def measure(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Load the target of a request, measure speed and memory of single prompts, then score all rows.

    Memory is read between the two: what it takes to load the target and to answer one prompt at a time.
    """
    loaded = TASKS[request["task"]].load(request)
    speed = loaded.measure_speed()
    peak_bytes = peak_resident_bytes()
    device_peak_bytes = _device_peak_bytes()
    result, answers = loaded.score(progress)
    distance = loaded.measure_distance()
    return {
        "score": dataclasses.asdict(result),
        "speed": dataclasses.asdict(speed) if speed else None,
        "peak_bytes": peak_bytes,
        "device_peak_bytes": device_peak_bytes,
        "scoring_peak_bytes": peak_resident_bytes(),
        "device_scoring_peak_bytes": _device_peak_bytes(),
        "answers": [dataclasses.asdict(answer) for answer in answers],
        "distance": dataclasses.asdict(distance) if distance else None,
        "torch_loaded": "torch" in sys.modules,
    }


def _device_peak_bytes() -> int | None:
    """Highest allocated memory of the CUDA device, None where none is used."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
