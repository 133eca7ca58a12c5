"""`edgetune plan`: check a recipe against the real files, estimate memory and time of its run. The work: plan.py."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, out_option, read_recipe, recipe_argument, set_option
from edgetune.errors import RecipeError, RunError, shown
from edgetune.files import write_text

if TYPE_CHECKING:
    from edgetune.model.fit import Change
    from edgetune.plan import Plan
    from edgetune.planning.durations import Duration
    from edgetune.planning.facts import StageName
    from edgetune.recipe import Recipe


@click.command("plan", epilog="Example: edgetune plan recipes/quickstart.toml --gpu-memory 4GiB --fit small.toml")
@recipe_argument
@set_option
@click.option("--gpu-memory", metavar="SIZE", help='Plan for a GPU of this size, e.g. "8GiB", here or elsewhere.')
@click.option(
    "--fit",
    "fit_to",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="NEW.toml",
    help="Write a recipe that fits the budget, the least painful change first.",
)
@click.option(
    "--device-bandwidth",
    metavar="SIZE/s",
    help='How fast the device reads its memory, e.g. "8GB/s", for the bundle\'s tokens/s.  [default: as this machine]',
)
@out_option
@force_option
@json_option
def command(
    recipe: Path,
    *,
    overrides: tuple[str, ...],
    gpu_memory: str | None,
    fit_to: Path | None,
    device_bandwidth: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Check RECIPE against the real files; estimate memory and time of each stage of its run, and the bundle.

    Reads config, headers, tokenizer and rows, measures this machine for a second; loads no weights (of a .gguf base
    once). What would stop `edgetune run` later, in its run folder too, is told now, all at once. Exits 4 if the budget
    is too small for the largest stage: [budget] gpu_memory (or --gpu-memory) where there is one, else memory.
    """
    from edgetune.plan import disk_bytes, duration, fitted, plan, refuse_over_budget, stage_seconds
    from edgetune.plan_checks import check_folder
    from edgetune.run_dir import RunDir, refuse_other_run

    if gpu_memory is not None:
        overrides = (*overrides, f"budget.gpu_memory={json.dumps(gpu_memory)}")
    loaded = read_recipe(recipe, overrides)
    if fit_to is not None and fit_to.exists() and not force:
        raise RunError(f"{fit_to}: exists already", cure="give another path, or --force to replace it")
    run_dir = RunDir(out or Path("runs") / loaded.name)
    if out is not None and not force:
        refuse_other_run(run_dir, loaded.to_toml())
    with console.ProgressLine() as progress:
        planned = plan(loaded, progress=progress)
    check_folder(run_dir, needed_bytes=disk_bytes(planned))
    changes: list[Change] | None = None
    if fit_to is not None:
        fitting, changes = fitted(loaded, planned)
        write_text(fit_to, _header(loaded, planned, changes) + fitting.to_toml())
    takes, decoding = duration(planned), _decoding(planned, device_bandwidth)
    seconds = stage_seconds(planned, takes)
    if as_json:
        console.say_json({**_document(loaded, planned, changes, takes, decoding), "stages": _stages(planned, seconds)})
    else:
        console.say(f"{_table(loaded, planned)}\n{_stage_table(loaded, planned, seconds)}")
        console.say(f"\n{_time(takes)}\n{_device(planned, decoding)}")
        if changes is not None and fit_to is not None:
            console.say(_changes(fit_to, changes))
    if changes is None:
        refuse_over_budget(loaded, planned)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What a device that reads `bandwidth_bytes_per_s` of its memory decodes; `tokens_per_s` None: it writes none."""

    tokens_per_s: float | None
    bandwidth_bytes_per_s: float
    where: str


def _decoding(planned: Plan, asked: str | None) -> Decoding:
    """On a device of the bandwidth asked for, else on one like this machine."""
    import os

    from edgetune.model.machine import read_bandwidth_bytes_per_s
    from edgetune.recipe import parse_size

    asked = asked.strip() if asked else asked
    if asked is None:
        rate = read_bandwidth_bytes_per_s(os.cpu_count() or 1, mib_per_thread=64, rounds=3)["best"]
        where = f"memory is read at {rate / 1e9:.0f} GB/s, as on this machine"
    else:
        try:
            rate = float(parse_size(asked.removesuffix("/s")) or 0)
        except RecipeError:
            raise RecipeError(
                f"--device-bandwidth: {shown(asked)} is no bandwidth", cure='write it as "8GB/s"'
            ) from None
        where = f"memory is read at {asked}"
    writes = planned.recipe.of_task.writes_tokens
    return Decoding(planned.on_device.tokens_per_s(rate) if writes else None, rate, where)


def _time(takes: Duration | None) -> str:
    if takes is None:
        return "time: not estimated, the GPU is not here"
    more = "" if takes.is_all else "more than "
    return (
        f"time: {more}{_lasts(takes.seconds)} of training on this machine, {takes.tokens:,} tokens in some"
        f" {takes.steps:,} steps at {takes.tokens_per_s:,.0f} tokens/s"
    )


def _lasts(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _device(planned: Plan, decoding: Decoding) -> str:
    bundle, speed = planned.on_device, ""
    if decoding.tokens_per_s is not None:
        speed = f", {decoding.tokens_per_s:,.0f} tokens/s where {decoding.where}"
    return f"device: a bundle of {_mib(bundle.bundle_bytes)} MiB, {_mib(bundle.peak_bytes)} MiB in memory{speed}"


def _header(recipe: Recipe, planned: Plan, changes: list[Change]) -> str:
    """What a fitted recipe says of itself, as comments."""
    lines = [f"# {recipe.name}, made to fit {_mib(planned.allowed_bytes or 0)} MiB by `edgetune plan --fit`."]
    for change in changes:
        values = ", ".join(f"{key} = {_value(value)}" for key, value in change.values.items())
        lines.append(f"# {values}: {change.cost}; peak then {_mib(change.peak_bytes)} MiB")
    return "\n".join(lines) + "\n\n"


def _changes(path: Path, changes: list[Change]) -> str:
    lines = ["", f"{path}: {'what was changed' if changes else 'fits as it is'}"]
    for change in changes:
        values = ", ".join(f"{key} = {_value(value)}" for key, value in change.values.items())
        lines += [f"  {values}", f"    peak {_mib(change.peak_bytes)} MiB; costs {change.cost}"]
    return "\n".join(lines)


def _value(value: object) -> str:
    return json.dumps(value)


def _document(
    recipe: Recipe,
    planned: Plan,
    changes: list[Change] | None,
    takes: Duration | None,
    decoding: Decoding,
) -> dict[str, Any]:
    made = None if changes is None else [dataclasses.asdict(change) for change in changes]
    return {
        "recipe": recipe.name,
        "base": recipe.model.base,
        "base_parameters": planned.estimate.base_parameters,
        "trainable_parameters": planned.estimate.trainable_parameters,
        "device": planned.device,
        "largest_stage": planned.largest.name,
        "parts_bytes": planned.largest.parts,
        "other_bytes": planned.estimate.other,
        "peak_bytes": planned.largest.peak_bytes,
        "budget_bytes": planned.allowed_bytes,
        "fits": planned.fits,
        "unquantized_bytes": planned.unquantized_bytes,
        "settled": _settled(recipe, planned),
        "changes": made,
        "duration": takes and {**dataclasses.asdict(takes), "seconds": takes.seconds},
        "on_device": {
            **dataclasses.asdict(planned.on_device),
            "tokens_per_s": decoding.tokens_per_s,
            "bandwidth_bytes_per_s": decoding.bandwidth_bytes_per_s,
        },
        "first_rows": planned.rows,
        "notes": planned.notes,
    }


def _settled(recipe: Recipe, planned: Plan) -> dict[str, Any]:
    """Keys of [train] whose "auto" memory decided, and what was changed with them -> their values."""
    asked, found = dataclasses.asdict(recipe.train), dataclasses.asdict(planned.recipe.train)
    return {f"train.{key}": value for key, value in found.items() if asked[key] != value}


def _table(recipe: Recipe, planned: Plan) -> str:
    estimate = planned.estimate
    lines = [
        f"{recipe.name}: {recipe.model.base}, {estimate.base_parameters:,} parameters,"
        f" {estimate.trainable_parameters:,} to train"
    ]
    for which, counts in planned.rows.items():
        trained, labels = counts.get("trained_tokens"), counts.get("labels")
        what = f"{labels} labels" if trained is None else f"of which {trained:,} are trained"
        lines.append(
            f"data.{which}: first {counts['rows']} rows read, {counts['tokens']:,} tokens, {what};"
            f" {counts['too_long']} rows longer than max_seq_len"
        )
    lines += planned.notes
    if settled := _settled(recipe, planned):
        lines.append("auto: " + ", ".join(f"{key} = {_value(value)}" for key, value in settled.items()))
    where = "a GPU" if planned.device == "cuda" else "this machine's CPU"
    lines += ["", f"{f'estimated peak of training on {where}':<38} {'MiB':>8}"]
    lines += [f"  {name:<36} {_mib(size):>8}" for name, size in estimate.parts.items() if size]
    lines.append(f"  {'total':<36} {_mib(estimate.peak_bytes):>8}")
    others = ", ".join(f"{name} {_mib(size)}" for name, size in estimate.other.items() if size)
    if others:
        lines.append(f"at another time, and smaller: {others}")
    if planned.unquantized_bytes is not None:
        lines.append(
            f'the base fits without 4 bits too, with {_mib(planned.unquantized_bytes)} MiB: model.quantization = "none"'
            " trains faster and rounds nothing"
        )
    return "\n".join(lines)


def _stage_table(recipe: Recipe, planned: Plan, seconds: Mapping[StageName, float]) -> str:
    """Peak and time of each stage; the largest against the budget, its parts where it is not the training."""
    lines = ["", f"{'peak of each stage of a run':<38} {'MiB':>8} {'about':>9}"]
    for stage in planned.stages:
        peak = _mib(stage.peak_bytes) if stage.parts else "-"
        lasts = _lasts(seconds[stage.name]) if stage.name in seconds else ""
        lines.append(f"  {stage.name:<36} {peak:>8} {lasts:>9}".rstrip())
    if planned.allowed_bytes is not None:
        key = "budget.gpu_memory" if recipe.budget.gpu_memory else "budget.memory"
        lines.append(f"  {key:<36} {_mib(planned.allowed_bytes):>8}")
    if planned.largest.name != "train":
        parts = ", ".join(f"{name} {_mib(size)}" for name, size in planned.largest.parts.items())
        lines.append(f"{planned.largest.name} is the largest: {parts}")
    return "\n".join(lines)


def _stages(planned: Plan, seconds: Mapping[StageName, float]) -> list[dict[str, Any]]:
    """The stages of a run as JSON-able values; seconds None where another device is planned for."""
    return [
        {
            "name": stage.name,
            "peak_bytes": stage.peak_bytes,
            "parts_bytes": stage.parts,
            "seconds": seconds.get(stage.name),
        }
        for stage in planned.stages
    ]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:,.1f}"
