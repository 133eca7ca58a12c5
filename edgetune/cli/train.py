"""`edgetune train`: the adapter of a recipe. The work is in train/loop.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.cli import console
from edgetune.cli.jointly import only_main, together
from edgetune.cli.options import force_option, json_option, out_option, read_recipe, recipe_argument, set_option
from edgetune.launch import launched

if TYPE_CHECKING:
    from edgetune.recipe import Recipe
    from edgetune.run_dir import RunDir
    from edgetune.train.result import TrainResult
    from edgetune.tune.folds import CrossValidation


@click.command("train", epilog="Example: edgetune train recipes/quickstart.toml --set train.epochs=1")
@recipe_argument
@set_option
@out_option
@click.option(
    "--find-lr",
    is_flag=True,
    help="Do not train: raise the learning rate over 100 steps and show where the loss falls fastest.",
)
@click.option(
    "--vary",
    "varied",
    metavar="TABLE.KEY=VALUE,VALUE",
    multiple=True,
    help="Train one adapter for each value side by side on one base, e.g. --vary train.learning_rate=1e-4,3e-4. May be "
    "repeated: every combination.",
)
@force_option
@json_option
def command(
    recipe: Path,
    *,
    overrides: tuple[str, ...],
    out: Path | None,
    find_lr: bool,
    varied: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Train the recipe's adapter into RUN/adapter.

    A run that was stopped or killed goes on where it was when the same command is given again. --force starts anew.
    """
    if find_lr and varied:
        raise click.UsageError("--find-lr and --vary go one at a time")
    if find_lr or varied:
        _refuse_several_processes("--find-lr" if find_lr else "--vary")
    if find_lr:
        _find_rate(recipe, overrides, out, as_json=as_json)
        return
    if varied:
        _train_variants(recipe, overrides, varied, out, force=force, as_json=as_json)
        return
    from edgetune.run_dir import RunDir

    with together():
        loaded = read_recipe(recipe, overrides)
        run_dir = RunDir(out or Path("runs") / loaded.name)
        console.work_in(run_dir.path)
        with console.ProgressLine() as progress, only_main(run_dir):
            from edgetune.report.card import write_cards
            from edgetune.train.loop import train

            if loaded.evaluate.folds:
                from edgetune.tune.folds import cross_validate, refuse_folds_of_many

                refuse_folds_of_many(loaded)
            result = train(loaded, run_dir, force=force, progress=progress)
            if launched().is_main:
                write_cards(run_dir, progress=progress)
            folds = cross_validate(loaded, run_dir, progress=progress) if loaded.evaluate.folds else None
    if launched().is_main:
        _show(loaded, run_dir, result, folds, as_json=as_json)


def _show(
    recipe: Recipe, run_dir: RunDir, result: TrainResult, folds: CrossValidation | None, *, as_json: bool
) -> None:
    """What a training was, and its cross-validation if there was one, on stdout."""
    if as_json:
        validated = dataclasses.asdict(folds) if folds else None
        values = {"run": str(run_dir.path), "adapter": str(run_dir.adapter), **dataclasses.asdict(result)}
        console.say_json({**values, "folds": validated})
        return
    loss = "not measured" if result.eval_loss is None else f"{result.eval_loss:.4f} (step {result.best_step})"
    console.say(f"adapter     {run_dir.adapter}")
    console.say(f"eval loss   {loss}")
    console.say(f"train loss  {result.train_loss:.4f}")
    stopped = " (stopped early)" if result.stopped_early else ""
    console.say(f"steps       {result.steps}{stopped}, {result.trained_tokens:,} {recipe.learned}s")
    console.say(f"speed       {result.tokens_per_s:,.0f} tokens/s")
    console.say(f"memory      {result.peak_bytes / 1024**2:,.0f} MiB at the peak")
    console.say(f"curve       {run_dir.loss_curve}")
    if folds:
        console.say(f"folds       {folds.summary}")


def _refuse_several_processes(option: str) -> None:
    """Raises RecipeError, in all processes of a launcher as one, where an option is for one process."""
    if launched().count > 1:
        from edgetune.errors import RecipeError

        with together():
            raise RecipeError(f"{option} is for one process", cure="start it without a launcher")


def _find_rate(recipe: Path, overrides: tuple[str, ...], out: Path | None, *, as_json: bool) -> None:
    """The range test, in a folder of its own: it is no part of a run."""
    from edgetune.files import refuse_to_replace, write_json
    from edgetune.lock import only_process
    from edgetune.run_dir import RunDir

    loaded = read_recipe(recipe, overrides)
    run_dir = RunDir(out or Path("runs") / f"{loaded.name}-lr")
    results, picture = run_dir.path / "learning_rate.json", run_dir.path / "learning_rate.png"
    refuse_to_replace(run_dir.path, recipe, what="range test", is_one=lambda _: results.is_file())
    console.work_in(run_dir.path)
    with console.ProgressLine() as progress, only_process(run_dir):
        from edgetune.provenance import provenance
        from edgetune.train.find_rate import draw_rates, find_rate

        found = find_rate(loaded, run_dir, progress=progress)
        draw_rates(found, picture, title=loaded.name, per=loaded.learned)
        values = dataclasses.asdict(found)
        write_json(results, {**values, "provenance": provenance(loaded.train.seed)})
    if as_json:
        console.say_json({**values, "picture": str(picture)})
        return
    ended = f"{found.diverged:.2e}" if found.diverged is not None else f"not up to {found.rates[-1]:.2e}"
    console.say(f"suggested       {found.suggested:.2e}  (the recipe's: {found.recipe_rate:.2e})")
    console.say(f"falls fastest   {found.steepest:.2e}")
    console.say(f"lowest loss     {found.lowest:.2e}")
    console.say(f"diverges        {ended}")
    console.say(f"picture         {picture}")
    console.note(f"to train with it: edgetune train {recipe} --set train.learning_rate={found.suggested:.2g}")


def _train_variants(
    recipe: Path, overrides: tuple[str, ...], varied: tuple[str, ...], out: Path | None, *, force: bool, as_json: bool
) -> None:
    """Adapters side by side, each in a run folder of its own inside one folder."""
    from edgetune.files import read_json, refuse_to_replace, write_json
    from edgetune.lock import only_process
    from edgetune.run_dir import RunDir
    from edgetune.train.side_by_side import refuse_if_all_diverged, train_side_by_side
    from edgetune.train.variants import read_variants

    variants = read_variants(recipe, overrides, varied)
    folder = out or Path("runs") / f"{recipe.stem}-side"
    results = folder / "side_by_side.json"
    refuse_to_replace(folder, recipe, what="adapters side by side", is_one=lambda _: results.is_file())
    console.work_in(folder)
    with console.ProgressLine() as progress, only_process(RunDir(folder)):
        if results.is_file():
            _empty(folder, is_kept=not force and read_json(results)["adapters"] is not None)
        write_json(results, {"adapters": None})  # says whose folder it is, should the training be stopped
        found = train_side_by_side(variants, folder, progress=progress)
    order = sorted(found.results.items(), key=lambda item: getattr(item[1], "eval_loss", None) or float("inf"))
    values = {
        "adapters": {name: dataclasses.asdict(result) if result else None for name, result in order},
        "best": str(folder / order[0][0]),
        "peak_bytes": found.peak_bytes,
        "wall_s": round(found.wall_s, 3),
    }
    write_json(results, values)
    refuse_if_all_diverged(found)
    if as_json:
        console.say_json(values)
        return
    width = max(map(len, variants))
    console.say(f"{'adapter':<{width}}  eval loss   best step")
    for name, result in order:
        told = "diverged" if result is None else f"{result.eval_loss:>9.4f}  {result.best_step:>10,}"
        console.say(f"{name:<{width}}  {told}")
    console.say(
        f"the best: {values['best']}  ({found.peak_bytes / 1024**2:,.0f} MiB at the peak, {found.wall_s:.0f} s)"
    )


def _empty(folder: Path, *, is_kept: bool) -> None:
    """Remove adapters side by side, all but the folder itself, whose lock is held. Raises RunError if they are kept."""
    import shutil

    from edgetune.errors import RunError

    if is_kept:
        raise RunError(f"{folder}: holds adapters already", cure="choose another --out, or replace them with --force")
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
