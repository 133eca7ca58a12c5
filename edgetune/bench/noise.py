"""Numbers with their noise: what several fresh processes found, or why there is nothing. Pure functions.

Every measured value in a bench report is a table: either numbers, or {"absent": reason}. Zero never stands for missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NO_GPU = "no GPU was used"
RESOLUTION = 0.005
"""Share of a value by which two runs may differ at least: pages of memory, ticks of clocks."""
Value = dict[str, Any]
"""Numbers by name, or {"absent": reason}."""


def absent(reason: str) -> Value:
    """What stands where a number would."""
    return {"absent": reason}


def is_absent(value: Mapping[str, Any]) -> bool:
    """Whether a value has no numbers."""
    return "absent" in value


def summarise(processes: Sequence[Sequence[float]], *, is_rate: bool = False, **facts: Any) -> Value:
    """Samples of each process -> median and p95 of all together, least and most of the processes' own medians.

    p95 is the bad end: the value that 95 % of the samples keep to, of a time from below, of a rate from above. `spread`
    is (most - least) / median, what another process may differ by; None for a single process. Raises ValueError without
    samples.
    """
    samples = [sample for process in processes for sample in process]
    if not samples:
        raise ValueError("no samples")
    medians = [statistics.median(process) for process in processes if process]
    median = statistics.median(medians)
    spread = (max(medians) - min(medians)) / median if len(medians) > 1 and median else None
    return {
        "median": median,
        "p95": float(np.quantile(samples, 0.05 if is_rate else 0.95)),
        "least": min(medians),
        "most": max(medians),
        "spread": spread,
        "processes": len(medians),
        "samples": len(samples),
        **facts,
    }


def peaks(found: Sequence[Mapping[str, Any]]) -> Value:
    """What processes measured of memory -> {"cold": ..., "warm": ..., "device": ...}, each with its noise."""

    def told(key: str, reason: str) -> Value:
        values = [value[key] for value in found]
        return summarise([[value] for value in values]) if all(values) else absent(reason)

    return {
        "cold": told("cold", "not measured"),
        "warm": told("warm", "the system cannot start measuring a peak anew"),
        "device": told("device_bytes", NO_GPU),
    }


def agree(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two summaries of the same thing may differ by noise alone: their ranges, each as wide again on both
    sides, and at least RESOLUTION of the value wide, overlap.

    With n processes a run the medians of another run leave the range of the first one often (with 3, one in two), but
    lie seldom further off than the range is wide.
    """
    (low, high), (other_low, other_high) = (_widened(value["least"], value["most"]) for value in (one, other))
    return bool(low <= other_high and other_low <= high)


def _widened(least: float, most: float) -> tuple[float, float]:
    width = max(most - least, RESOLUTION * abs(most))
    return least - width, most + width
