"""`edgetune tune`: search a recipe's hyperparameters. The work is in tune/search.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, read_recipe, recipe_argument, set_option
from edgetune.cli.population import SCORED, train_and_show
from edgetune.cli.sensitivity import shown, vary_and_show
from edgetune.errors import RecipeError, is_stop

if TYPE_CHECKING:
    from edgetune.recipe import Recipe
    from edgetune.tune.confirm import Confirmation
    from edgetune.tune.search import StudyResult
    from edgetune.tune.study import StudyDir

UNUSED = {
    "a population": {
        "trials": "trains each member once",
        "sampler": "spreads its members' values and moves them",
        "pruner": "gives nobody up: the weak copy the strong",
        "seeds": "is not trained again with other seeds",
    },
    "--one-at-a-time": {
        "trials": "tries each value once a seed",
        "sampler": "tries the ends of each range and what lies between",
        "pruner": "gives nothing up",
        "seed": "draws nothing",
        "warm_start": "begins with the recipe's own values alone",
    },
}
"""Keys of [tune] that have no part in what is no search, and why."""
APPLIED = {
    "a population": "'s values change while it trains; leave --apply out, and take its best.toml",
    "--one-at-a-time": " finds no best recipe; leave --apply out",
}
"""Why nothing can be written into the recipe."""


@click.command("tune", epilog="Example: edgetune tune recipes/quickstart.toml --trials 30 --sampler tpe")
@recipe_argument
@set_option
@click.option("--trials", metavar="N", help="tune.trials: the study ends with so many.")
@click.option("--sampler", metavar="NAME", help="tune.sampler: auto, random, grid, tpe, gp or cmaes.")
@click.option("--pruner", metavar="NAME", help="tune.pruner: none, halving or hyperband.")
@click.option(
    "--population",
    metavar="N",
    help="tune.population: no trials, but so many trainings of which the weak ones copy the strong ones, on Ray Tune.",
)
@click.option("--workers", metavar="N", help="tune.workers: of a population so many train at the same time.")
@click.option("--storage", metavar="URL", help="tune.storage: a database that several workers share.")
@click.option(
    "-o",
    "--out",
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Folder of the study.  [default: runs/<recipe name>-tune, of a population runs/<recipe name>-population]",
)
@click.option(
    "--apply",
    "applies",
    is_flag=True,
    help="Then train the best recipe with tune.seeds other seeds, and write it into RECIPE if it is still better.",
)
@click.option(
    "--one-at-a-time",
    is_flag=True,
    help="No search: vary each key alone around the recipe's value, over tune.seeds seeds, and rank what matters.",
)
@force_option
@json_option
def command(
    recipe: Path,
    *,
    overrides: tuple[str, ...],
    trials: str | None,
    sampler: str | None,
    pruner: str | None,
    population: str | None,
    workers: str | None,
    storage: str | None,
    out: Path | None,
    applies: bool,
    one_at_a_time: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Search RECIPE's hyperparameters: its [tune] table says where, how and how long.

    Each trial is trained on a base that stays loaded, and scored on the eval rows as its int4 model will run. The best
    recipe is written into the study's folder, after Ctrl-C the best so far. A study that was stopped or killed goes on
    when the same command is given again; more workers join with the same command. --force begins anew.

    With --population learning rate, dropout and weight decay change while members train; the best member's training is
    kept as a run folder, best/, and its recipe, with what changed when, in best.toml.
    """
    from edgetune.tune.study import StudyDir

    asked = {"trials": trials, "sampler": sampler, "pruner": pruner, "population": population, "workers": workers}
    more = [f"tune.{key}={value}" for key, value in asked.items() if value is not None]
    more += [f"tune.storage={json.dumps(storage)}"] if storage is not None else []
    loaded = read_recipe(recipe, (*overrides, *more))
    is_population = loaded.tune.population is not None
    if is_population and one_at_a_time:
        raise RecipeError(
            f"{recipe}: --one-at-a-time changes one key of the recipe, tune.population several at once",
            cure="leave one of the two out",
        )
    if is_population or one_at_a_time:
        kind = "a population" if is_population else "--one-at-a-time"
        _refuse_unused(recipe, kind, [*overrides, *more], applies=applies)
    folder = StudyDir(out or Path("runs") / f"{loaded.name}-{'population' if is_population else 'tune'}")
    console.work_in(folder.path)
    if is_population:
        train_and_show(loaded, folder.path, force=force, as_json=as_json)
        return
    if one_at_a_time:
        vary_and_show(loaded, folder, force=force, as_json=as_json)
        return
    _search_and_show(recipe, loaded, folder, overrides, applies=applies, force=force, as_json=as_json)


def _search_and_show(
    recipe: Path,
    loaded: Recipe,
    folder: StudyDir,
    overrides: Sequence[str],
    *,
    applies: bool,
    force: bool,
    as_json: bool,
) -> None:
    """The search, its page, and what it found on stdout; with `applies` the best values in the recipe's file."""
    from edgetune.tune.search import search

    progress = console.ProgressLine()
    try:
        result = search(loaded, folder, force=force, confirms=applies, progress=progress)
    except BaseException as error:
        if is_stop(error) and folder.results.exists():
            progress.close()
            _write_page(folder)
        raise
    finally:
        progress.close()
    _write_page(folder)
    is_applied = applies and (result.confirmation is None or result.confirmation.is_better)
    if is_applied:
        from edgetune.tune.apply import apply_values

        apply_values(recipe, result.values)
        beside = [key for key in map(_key, overrides) if not key.startswith("tune.") and key not in result.values]
        if beside:
            console.note(f"{recipe}: {', '.join(beside)}: as --set gave it only in {folder.best}")
    if as_json:
        facts = {"study": str(folder.path), "best_recipe": str(folder.best), "is_applied": is_applied}
        console.say_json({**facts, **result.document})
    else:
        console.say(_table(result, seeds=loaded.tune.seeds))
        if applies:
            console.say(
                f"{recipe}: " + ("has the best values now" if is_applied else "is as it was: nothing is better")
            )


def _refuse_unused(recipe: Path, kind: str, settings: Sequence[str], *, applies: bool) -> None:
    """Raise RecipeError for what is asked for and would do nothing: --apply, or a setting like "tune.trials=3".

    A recipe's own [tune] may be there for its searches too, and is let be.
    """
    if applies:
        raise RecipeError(f"{recipe}: {kind}{APPLIED[kind]}")
    for setting in settings:
        table, _, key = _key(setting).partition(".")
        if table == "tune" and key in UNUSED[kind]:
            raise RecipeError(f"{recipe}: tune.{key}: {kind} {UNUSED[kind][key]}", cure="leave it out")


def _key(setting: str) -> str:
    """Of a setting like "train.epochs=3"."""
    return setting.partition("=")[0].strip()


def _write_page(folder: StudyDir) -> None:
    """report.html of the study; a search that is done does not fail for want of a page."""
    from edgetune.errors import EdgeTuneError
    from edgetune.report.write import report

    try:
        report([folder.path], folder.path / "report.html", force=True)
    except (EdgeTuneError, ModuleNotFoundError) as error:
        console.note(f"tune: no report.html: {error}")


def _table(result: StudyResult, *, seeds: int) -> str:
    found = result.document
    best, spent = found["best"], found["spent"]
    rows = f"{best.get('rows', '?')} eval rows"
    if best.get("folds"):
        rows = f"{best['rows']} rows held out of {len(best['folds'])} folds, their mean"
    names = zip(found["objectives"], best["objectives"], strict=True)
    weights = found["importances"] or {}
    told = ", ".join(f"{name} {share:.0%}" for name, share in list(weights.items())[:4])
    lines = [
        f"best        trial {best['number']}: {', '.join(f'{name} {value:.4g}' for name, value in names)}",
        f"            {found['metric']} on {rows}, {SCORED[found['score_of']]}",
        *(f"  {name:<32} {shown(value)}" for name, value in best["values"].items()),
        f"trials      {spent['trials']}, {_given_up(found)} of them given up",
        f"cost        {spent['tokens']:,} tokens, {spent['minutes']:.1f} minutes",
        f"matters     {told or found['importances_told']}",
        *([f"            {found['importances_told']}"] if told else []),
        f"recipe      {result.folder.best}",
        f"report      {result.folder.path / 'report.html'}",
    ]
    if result.confirmation is not None:
        lines += _confirmed(result.confirmation)
    elif seeds > 1:
        lines.append(
            f"luck?       --apply tells: it trains this recipe, and the one as it was, with {seeds} other seeds"
        )
    if found["front"]:
        lines += ["", "Pareto front"]
        lines += [f"  trial {item['number']:<4} {_objectives(found, item)}" for item in found["front"]]
    return "\n".join(lines)


def _confirmed(confirmation: Confirmation) -> list[str]:
    """Both recipes with new seeds."""
    rows = {"best": confirmation.best, "as it was": confirmation.began_with}
    lines = [f"with seeds {', '.join(map(str, confirmation.seeds))}"]
    for name, values in rows.items():
        lines.append(f"  {name:<10}" + "  ".join("-" if value is None else f"{value:.4g}" for value in values))
    effect = confirmation.effect
    if effect is not None:
        interval = "" if effect.low is None else f", 95 % interval {effect.low:+.4g} to {effect.high:+.4g}"
        lines.append(f"  better by {effect.mean:+.4g}{interval}")
    return lines


def _given_up(found: Mapping[str, Any]) -> int:
    return sum(trial["state"] == "pruned" for trial in found["trials"])


def _objectives(found: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    names = zip(found["objectives"], item["objectives"], strict=True)
    return "  ".join(f"{name} {value:,.4g}" for name, value in names)
