"""One target measured in a process of its own: `python -m edgetune.evaluate.child`, started by evaluate.py.

Reads a request (JSON) on stdin; writes events, then the result or an error, one JSON object a line, on stdout.
For a bundle it imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.child_process import answer
from edgetune.evaluate import labeller
from edgetune.evaluate.distance import Distance, measure_distance, write_distributions
from edgetune.evaluate.rows import read_eval_set
from edgetune.evaluate.score import Answerer, measure_speed, score
from edgetune.process_memory import peak_resident_bytes


def main() -> int:
    """Measure what stdin asks for; the exit code says whether a result was written."""
    return answer(measure)


def measure(request: Mapping[str, Any], progress: Any) -> dict[str, Any]:
    """Load the target of a request, measure speed and memory of single prompts, then score all rows.

    Memory is read between the two: what it takes to load the target and to answer one prompt at a time.
    """
    if request["task"] == "classification":
        measure_speed, score = labeller.open_target(request)
        compare: Callable[[], Distance | None] = _no_distance
    else:
        measure_speed, score, compare = _open_target(request)
    speed = measure_speed()
    peak_bytes = peak_resident_bytes()
    device_peak_bytes = _device_peak_bytes()
    result, answers = score(progress)
    distance = compare()
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


def _open_target(
    request: Mapping[str, Any],
) -> tuple[Callable[[], Any], Callable[[Any], Any], Callable[[], Distance | None]]:
    """Load a target that generates: what measures its speed, scores it, and tells how far it is from the fine-tune."""
    whole, target = read_eval_set(Path(request["eval_set"])), _load(request)
    eval_set = whole.evenly(request["most_rows"])

    def compare() -> Distance | None:
        if request["distributions"] is None:
            return None
        path = Path(request["distributions"])
        if request["is_reference"]:
            write_distributions(target, whole.rows, path)
        return measure_distance(target, whole.rows, path) if path.exists() else None

    measure, total = partial(measure_speed, target, eval_set), partial(score, target, eval_set)
    return measure, lambda progress: total(progress=progress), compare


def _no_distance() -> None:
    """Of a classifier."""


def _load(request: Mapping[str, Any]) -> Answerer:
    if request["kind"] == "bundle":
        return importlib.import_module("edgetune.evaluate.bundle").BundleAnswerer(Path(request["path"]))
    if request["kind"] == "gguf":
        return importlib.import_module("edgetune.evaluate.gguf").GgufAnswerer(Path(request["path"]))
    return importlib.import_module("edgetune.evaluate.torch_model").load(request)


def _device_peak_bytes() -> int | None:
    """Highest allocated memory of the CUDA device, None where none is used."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
