"""The searches of results/tune.json as a picture, the best score so far over the tokens spent, and as a table.

python -m benchmarks.tuned draws the picture anew
"""

from __future__ import annotations

import itertools
import json
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

RESULTS = Path(__file__).parent / "results"
POINTS = 200
POPULATION = "population-based training"
ROUNDED = {
    "deployed": "Each weight was rounded by itself.",
    "exported": "Models were calibrated and repaired as export does.",
}
SCORED = ("trained", "deployed", "exported")
"""As tune.score_of has them: before any rounding, each weight rounded by itself, calibrated and repaired."""
FEWEST = 4
"""Trials of which ranks are compared."""
METRICS = {"nano-snips": "eval loss of the int4 model", "minilm-banking77": "eval accuracy of the int4 model"}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "tune.png", show_default=True)
def main(out: Path) -> None:
    """Draw the picture."""
    draw(json.loads((RESULTS / "tune.json").read_text(encoding="utf-8")), out)
    click.echo(f"{out}")


def draw(report: Mapping[str, Any], out: Path) -> None:
    """The median of each method's seeds over the tokens spent, from the least to the most of them shaded."""
    from matplotlib.figure import Figure

    tasks = {name: task for name, task in report["tasks"].items() if task.get("searches")}
    figure = Figure(figsize=(6.5 * max(1, len(tasks)), 4.2), dpi=120, layout="constrained")
    for number, (name, task) in enumerate(tasks.items(), 1):
        axes = figure.add_subplot(1, len(tasks), number)
        whole = task["training_tokens"]
        places = np.linspace(whole, task["budgets"][-1] * whole, POINTS)
        for method, runs in task["searches"].items():
            lines = [[found_at(run["course"], place)[1] for place in places] for run in runs]
            axes.plot(places / whole, np.median(lines, axis=0), label=method)
            axes.fill_between(places / whole, np.min(lines, axis=0), np.max(lines, axis=0), alpha=0.08)
        if found := task.get("populations"):
            axes.plot([run["tokens"] / whole for run in found], [run["score"] for run in found], "k.", label=POPULATION)
        axes.axhline(task["default"], color="0.4", linestyle="--", label="default recipe")
        axes.set(xlabel="tokens spent, in whole trainings", ylabel=METRICS[name], title=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(task["budgets"], [str(budget) for budget in task["budgets"]])
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
    figure.savefig(out, bbox_inches="tight")


def found_at(course: Sequence[Sequence[Any]], tokens: float) -> Sequence[Any]:
    """Tokens, score and values of the best trial of a search when so many tokens were spent; before that its first."""
    place = bisect_right([spent for spent, *_ in course], tokens)
    return course[max(0, place - 1)]


def tokens_until(task: Mapping[str, Any], method: str, wanted: float, budget: int) -> float | None:
    """Tokens that a method's median over its seeds takes to a score, in whole trainings; None if it is not reached with
    the budget.
    """
    whole = task["training_tokens"]
    for place in np.linspace(whole, budget * whole, POINTS):
        median = statistics.median(found_at(run["course"], place)[1] for run in task["searches"][method])
        if median <= wanted if task["is_loss"] else median >= wanted:
            return float(place / whole)
    return None


def ranks(trials: Sequence[Mapping[str, Any]], *, is_loss: bool) -> dict[str, Any]:
    """How alike the objectives of SCORED rank trials: rank correlations of each pair, over all trials and over those of
    the better half as exported; and the exported score of the trial that each of them would choose. {} of too few.
    """
    from scipy.stats import kendalltau, spearmanr

    sign = -1.0 if is_loss else 1.0
    made = [trial for trial in trials if "diverged" not in trial]
    made.sort(key=lambda trial: -sign * trial["exported"]["score"])
    found: dict[str, Any] = {"trials": len(made), "diverged": len(trials) - len(made)}
    groups = {"all": made, "better_half": made[: (len(made) + 1) // 2]}
    for name, group in groups.items():
        if len(group) < FEWEST:
            return {}
        found[name] = {}
        for one, other in itertools.combinations(SCORED, 2):
            pairs = [[sign * trial[which]["score"] for trial in group] for which in (one, other)]
            told = {"spearman": float(spearmanr(*pairs)[0]), "kendall": float(kendalltau(*pairs)[0])}
            found[name][f"{one} and {other}"] = {key: round(value, 4) for key, value in told.items()}
    best = {name: max(made, key=lambda trial, name=name: sign * trial[name]["score"]) for name in SCORED}
    return {**found, "chosen": {name: trial["exported"]["score"] for name, trial in best.items()}}


def tune_table(report: Mapping[str, Any]) -> str:
    """What each method found with the same tokens, when it had what random search ends with, and what tests say."""
    parts = [_searches(name, task) for name, task in report["tasks"].items() if task.get("searches")]
    tests = [_tests(name, task) for name, task in report["tasks"].items() if task.get("test_effect")]
    if tests:
        head = ["| on test rows | default | tuned | better by (95 %) | seeds |", "| --- | ---: | ---: | ---: | ---: |"]
        parts.append("\n".join([*head, *tests]))
    parts += [_ranks(name, task) for name, task in report["tasks"].items() if task.get("ranks")]
    machine = report["provenance"]
    parts.append(f"Trained in {report['threads']} thread of {machine['processor']}.")
    return "\n\n".join(parts)


def _searches(name: str, task: Mapping[str, Any]) -> str:
    """For each budget the median of the seeds (least to most), and the tokens to random search's end."""
    budgets, whole = task["budgets"], task["training_tokens"]
    heads = [f"{budget} trainings' tokens: median (least to most) | to random's end" for budget in budgets]
    lines = [
        f"| {name}: {METRICS[name]} | {' | '.join(heads)} |",
        f"| --- |{' ---: | ---: |' * len(budgets)}",
        "| default recipe |" + f" {task['default']:.4f} | |" * len(budgets),
    ]
    seeds = max(map(len, task["searches"].values()))
    for method, runs in task["searches"].items():
        cells = []
        for budget in budgets:
            ends = [found_at(run["course"], budget * whole)[1] for run in runs]
            random = statistics.median(found_at(run["course"], budget * whole)[1] for run in task["searches"]["random"])
            needed = tokens_until(task, method, random, budget)
            told = "-" if needed is None else f"{needed:.1f}"
            cells.append(f"{statistics.median(ends):.4f} ({min(ends):.4f} to {max(ends):.4f}) | {told}")
        of = "" if len(runs) == seeds else f" ({len(runs)} of the seeds)"
        lines.append(f"| {method}{of} | {' | '.join(cells)} |")
    if "populations" in task:
        lines.append(_populations(task))
    best = task["extremes"][0 if task["is_loss"] else 1]
    lines += [
        "",
        f"{seeds} seeds each; a whole training has {whole:,} tokens; the best of the {len(task['table'])} trainings in "
        f"the table has {best:.4f}. {ROUNDED[task['score_of']]}",
    ]
    return "\n".join(lines)


def _populations(task: Mapping[str, Any]) -> str:
    """Of populations, which are real trainings with the smallest budget, scored when all its tokens are spent."""
    runs, whole = task["populations"], task["training_tokens"]
    smallest, *larger = task["budgets"]
    ends = [run["score"] for run in runs]
    median = statistics.median(ends)
    random = statistics.median(found_at(run["course"], smallest * whole)[1] for run in task["searches"]["random"])
    is_there = median <= random if task["is_loss"] else median >= random
    tokens = statistics.fmean(run["tokens"] for run in runs)
    told = f"{tokens / whole:.1f}" if is_there else "-"
    name = f"{POPULATION}, {runs[0]['members']} members, {len(runs)} seeds"
    return f"| {name} | {median:.4f} ({min(ends):.4f} to {max(ends):.4f}) | {told} |" + " | |" * len(larger)


def _ranks(name: str, task: Mapping[str, Any]) -> str:
    """How alike the objectives rank the same trials."""
    found = task["ranks"]
    lines = [
        f"| {name}: {found['trials']} trials, ranked by | Spearman | Kendall "
        "| Spearman, better half | Kendall, better half |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for pair, whole in found["all"].items():
        half = found["better_half"][pair]
        cells = [f"{value:.2f}" for one in (whole, half) for value in (one["spearman"], one["kendall"])]
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    chosen = ", ".join(f"{how} {score:.4f}" for how, score in found["chosen"].items())
    costs = ", ".join(
        f"{how} {statistics.median(trial[how]['wall_s'] for trial in task['objectives'] if how in trial):.0f} s"
        for how in SCORED
    )
    return "\n".join(
        [*lines, "", f"As exported, the trial that each would choose has: {chosen}. Scoring one takes: {costs}."]
    )


def _tests(name: str, task: Mapping[str, Any]) -> str:
    effect = task["test_effect"]
    default, tuned = (
        statistics.fmean(one["score"] for one in task["tests"] if one["recipe"] == which)
        for which in ("default", "tuned")
    )
    return (
        f"| {name}, {METRICS[name].removeprefix('eval ')} | {default:.4f} | {tuned:.4f} "
        f"| {effect['mean']:+.4f} ({effect['low']:+.4f} to {effect['high']:+.4f}) | {effect['seeds']} |"
    )


if __name__ == "__main__":
    main()
