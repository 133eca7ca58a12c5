"""What training cost, from the run folder: nothing is trained again."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

from edgetune.bench.noise import Value, absent
from edgetune.errors import RunError
from edgetune.files import read_json
from edgetune.run_dir import RunDir
from edgetune.train.events import read_events


def training_of(run_dir: RunDir) -> dict[str, Any]:
    """Peak memory, tokens/s and wall time of a run's training, by what the run left; absent what it did not.

    tokens/s have the spread of the training's own steps: `least` and `most` are their 5th and 95th percentile.
    """
    trained, record = _trained(run_dir)
    reason = f"{run_dir.results / 'train.json'}: not there, or of another version: `edgetune run` writes it"
    found: dict[str, Any] = {"run": run_dir.path.resolve().name, "path": str(run_dir.path)}
    for key in ("peak_bytes", "tokens_per_s", "wall_s", "steps", "tokens", "eval_loss"):
        value = trained.get(key)
        found[key] = absent(reason) if value is None else {"value": value}
    found["step_tokens_per_s"] = _step_rates(run_dir)
    found["provenance"] = record
    return found


def _trained(run_dir: RunDir) -> tuple[dict[str, Any], Any]:
    """The result of the training, {} where there is none, and its provenance: a finished run has both twice."""
    for name in ("train.json", "summary.json"):
        with contextlib.suppress(RunError):
            values = read_json(run_dir.results / name)
            trained = values if name == "train.json" else values.get("train")
            if isinstance(trained, dict):
                return trained, values.get("provenance")
    return {}, None


def _step_rates(run_dir: RunDir) -> Value:
    """tokens/s of the training's steps, as events.jsonl has them."""
    rates = [event["tokens_per_s"] for event in read_events(run_dir.events) if event.get("tokens_per_s")]
    if len(rates) < 2:
        return absent(f"{run_dir.events}: tells of fewer than two steps")
    cuts = statistics.quantiles(rates, n=20, method="inclusive")
    return {"median": statistics.median(rates), "least": cuts[0], "most": cuts[-1], "samples": len(rates)}
