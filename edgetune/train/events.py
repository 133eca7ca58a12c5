"""events.jsonl as the loop uses it: one line a step, one a measurement, none twice after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetune.files import write_text
from edgetune.run_dir import RunDir

STAGE = "train"


def read_events(path: Path) -> list[dict[str, Any]]:
    """The training's events in order; lines that a killed process left half written are left out."""
    if not path.exists():
        return []
    return [event for line in _lines(path) if (event := _parse(line)).get("stage") == STAGE]


def forget_after(run_dir: RunDir, step: int) -> None:
    """Drop the training's events past `step`: those steps are made again."""
    if not run_dir.events.exists():
        return
    kept = []
    for line in _lines(run_dir.events):
        event = _parse(line)
        if event and not (event.get("stage") == STAGE and event.get("step", 0) > step):
            kept.append(line)
    write_text(run_dir.events, "".join(f"{line}\n" for line in kept))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _parse(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}
