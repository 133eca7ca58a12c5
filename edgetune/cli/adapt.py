"""`edgetune adapt`: a run's adapter goes on with new rows. The work is in adapt_run.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, set_option
from edgetune.metric_names import METRIC_NAMES

SHOWN_LABELS = 5


@click.command("adapt", epilog="Example: edgetune adapt runs/quickstart --data new-rows.jsonl --replay 0.3")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="New rows to learn.")
@click.option("--eval", "eval_data", metavar="DATA", help="New rows to score on.  [default: a fifth of --data]")
@click.option(
    "--replay",
    type=click.FloatRange(0, 0.99),
    default=0.5,
    show_default=True,
    help="Share of the training rows that are old ones.",
)
@click.option(
    "--allowed-drop",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="By how much the old rows' score may fall (0.02: two points); of a loss, by what share it may rise.",
)
@click.option("--replace", "replaces", is_flag=True, help="Put the new bundle in the place of RUN's.")
@set_option
@click.option(
    "-o", "--out", "--output-dir", type=click.Path(path_type=Path), help="New run folder.  [default: RUN-adapted]"
)
@force_option
@json_option
def command(
    run: Path,
    *,
    data: str,
    eval_data: str | None,
    replay: float,
    allowed_drop: float,
    replaces: bool,
    overrides: tuple[str, ...],
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Go on with RUN's adapter on new rows, mixed with old ones so that it does not forget.

    Shows how the new rows differ from the old, and the score on eval rows of both before and after. Where RUN has a
    bundle, a new one is made, verified and scored beside it on the same rows. If the old rows' score fell too far, of
    the adapter or of the bundle, nothing is replaced and the exit code is 5.
    """
    from edgetune.adapt_run import Asked, adapt
    from edgetune.errors import CheckError
    from edgetune.files import beside, read_json
    from edgetune.run_dir import RunDir

    run_dir, new_dir = RunDir(run), RunDir(out or beside(run, "-adapted"))
    if run_dir.is_run:
        console.work_in(run)
    asked = Asked(data, eval_data, replay, allowed_drop, overrides, replaces)
    progress = console.ProgressLine()
    try:
        found = adapt(run_dir, new_dir, asked, force=force, progress=progress)
    except CheckError:
        progress.close()
        found = read_json(new_dir.results / "adapt.json")
        _show(found, as_json=as_json)
        raise
    finally:
        progress.close()
    _show(found, as_json=as_json)
    if found["bundle"] is None:
        console.note(f"{run} has no bundle, so none was made; for one: edgetune merge and export {new_dir.path}")


def _show(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.say_json(found)
        return
    for line in lines(found):
        console.say(line)


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Drift and scores for people."""
    yield from _drift_lines(found["drift"])
    yield ""
    name = METRIC_NAMES.get(found["old"]["metric"], found["old"]["metric"])
    yield f"{name:<20}{'rows':>7}{'before':>10}{'after':>10}   difference"
    bundles = found["bundles"] or {}
    for kind, item in (*_kinds(found), *((f"{kind}, bundle", item) for kind, item in _kinds(bundles))):
        form, low, high = (".4f", *item["interval"]) if item["metric"] == "loss" else (".1%", *item["interval"])
        yield (
            f"{kind:<20}{item['rows']:>7,}{item['before']:>10{form}}{item['after']:>10{form}}"
            f"   {item['difference']:+{form}} ({low:+{form}} to {high:+{form}})"
            f"   loss {item['loss_before']:.4f} -> {item['loss_after']:.4f}"
        )
    yield found["verdict"]
    if bundles:
        yield bundles["verdict"]
    yield f"adapter     {found['adapter']}"
    if found["bundle"]:
        yield f"bundle      {found['bundle']}" + (f", now {found['replaced']} too" if found["replaced"] else "")


def _kinds(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ((f"{kind} rows", found[kind]) for kind in ("old", "new") if kind in found)


def _drift_lines(drift: Mapping[str, Any]) -> Iterator[str]:
    told = {
        "length": f"{drift['old_lengths']['mean']:.1f} tokens a row -> {drift['new_lengths']['mean']:.1f}",
        "vocabulary": "divergence of the tokens, bits",
        "unseen": "share of the new rows' tokens that no old row has",
        "labels": "half the summed change of their shares",
    }
    counts = f"{drift['old_rows']:,} old and {drift['new_rows']:,} new rows"
    yield f"{'drift':<14}{'found':>7}{'by chance':>10}   {counts}; 0 none, 1 complete"
    for item in drift["measures"]:
        mark = "drift" if item["is_drift"] else ""
        yield f"{item['name']:<14}{item['value']:>7.3f}{item['chance']:>10.3f}   {mark:<8}{told[item['name']]}"
    losses = [drift["loss"][kind]["loss"] for kind in ("old", "new")]
    yield f"loss before   old rows {losses[0]:.4f}, new rows {losses[1]:.4f}"
    if drift["typical_words"]:
        yield f"typical of the new rows: {', '.join(drift['typical_words'])}"
    changed = [(label, *shares) for label, shares in drift["labels"].items()][:SHOWN_LABELS]
    if changed:
        yield "labels: " + ", ".join(f"{label} {old:.1%} -> {new:.1%}" for label, old, new in changed)
