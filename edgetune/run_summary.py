"""The end of a run: its table, results/summary.json, the cards of what it made, and its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.files import read_json, write_json
from edgetune.provenance import provenance
from edgetune.recipe import parse_size
from edgetune.run_dir import RunDir
from edgetune.run_state import RunState


@dataclass(frozen=True)
class RunResult:
    """A finished run, as results/summary.json holds it."""

    run_dir: RunDir
    table: str
    """The table as text."""
    ledger: str
    """What each step from the base to the device did, as text."""
    summary: Mapping[str, Any]
    """What only its task has is under the task's name."""


def finish(state: RunState, results: list[Any], ledger: str, facts: Mapping[str, Any]) -> RunResult:
    """Write what tells of a run; `results`: those of the table, the bundle's last, `facts`: more for the summary."""
    from edgetune.evaluate.targets import table_rows
    from edgetune.report.card import write_cards
    from edgetune.report.table import markdown, plain, values
    from edgetune.report.task import TASKS

    recipe, run_dir = state.recipe, state.run_dir
    rows, metric = table_rows(recipe, results), recipe.evaluate.metric
    summary = {
        "recipe": recipe.name,
        "metric": metric,
        "rows": results[0].score.rows,
        "confidence": results[0].score.confidence,
        "is_on_gpu": any(result.device_peak_bytes is not None for result in results),
        "table": values(rows),
        "markdown": markdown(rows, metric=metric),
        "bundle": str(run_dir.bundle),
        "verification": read_json(run_dir.results / "verify.json")["checks"],
        "peak_bytes": state.peak_bytes,
        "wall_s": round(sum(state.stage_s.values()), 3),
        "stage_s": state.stage_s,
        "budget": dataclasses.asdict(recipe.budget),
        "over_budget": over_budget(state),
        **facts,
        "provenance": provenance(recipe.train.seed),
    }
    if details := TASKS[recipe.model.task].details(results[-1].score, run_dir.results, title=recipe.name):
        summary[recipe.model.task] = details
    write_json(run_dir.results / "summary.json", summary)
    write_cards(run_dir, progress=state.progress)
    _write_report(state)
    return RunResult(run_dir, plain(rows, metric=metric), ledger, summary)


def over_budget(state: RunState) -> list[str]:
    """One line for each promise of [budget] that the run, as measured, did not keep."""
    budget, minutes = state.recipe.budget, sum(state.stage_s.values()) / 60
    allowed = parse_size(budget.memory)
    broken = []
    if allowed is not None and state.peak_bytes > allowed:
        broken.append(f"{state.peak_bytes / 1024**2:,.0f} MiB at the peak, budget.memory is {budget.memory}")
    if budget.minutes is not None and minutes > budget.minutes:
        broken.append(f"{minutes:.1f} minutes, budget.minutes is {budget.minutes:g}")
    return broken


def _write_report(state: RunState) -> None:
    """runs/x/report.html; a run that is done does not fail for want of a page."""
    from edgetune.report.write import report

    try:
        written = report([state.run_dir.path], state.run_dir.report, force=True)
    except ModuleNotFoundError as error:
        state.say("report", f"no page: {error.name} is not installed: pip install 'edgetune[report]'")
    except Exception as error:
        state.say("report", f"no page: {type(error).__name__}: {error}")
    else:
        state.say("report", f"{written.out}")
