"""Draws tune.png: the best score so far over the tokens spent, by method, from results/tune.json; and its table.

python -m benchmarks.tuned
"""

from __future__ import annotations

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
METRICS = {"nano-snips": "eval loss of the int4 model", "minilm-banking77": "eval accuracy of the int4 model"}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "tune.png", show_default=True)
def main(out: Path) -> None:
    """Draw the picture."""
    from matplotlib.figure import Figure

    report = json.loads((RESULTS / "tune.json").read_text(encoding="utf-8"))
    tasks = {name: task for name, task in report["tasks"].items() if "searches" in task}
    figure = Figure(figsize=(6.5 * len(tasks), 4.2), dpi=120, layout="constrained")
    for number, (name, task) in enumerate(tasks.items(), 1):
        axes = figure.add_subplot(1, len(tasks), number)
        whole = task["training_tokens"]
        places = np.linspace(whole, task["budget_tokens"], POINTS)
        for method, runs in task["searches"].items():
            lines = [[best_at(run["course"], place) for place in places] for run in runs]
            axes.plot(places / whole, np.mean(lines, axis=0), label=method)
            axes.fill_between(places / whole, np.min(lines, axis=0), np.max(lines, axis=0), alpha=0.08)
        if found := task.get("populations"):
            axes.plot([run["tokens"] / whole for run in found], [run["score"] for run in found], "k.", label=POPULATION)
        axes.axhline(task["default"], color="0.4", linestyle="--", label="default recipe")
        axes.set(xlabel="tokens spent, in whole trainings", ylabel=METRICS[name], title=name)
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
    figure.savefig(out, bbox_inches="tight")
    click.echo(f"{out}")


def best_at(course: Sequence[Sequence[float]], tokens: float) -> float:
    """The best score of a search when so many tokens were spent; its first one before that."""
    place = bisect_right([spent for spent, _ in course], tokens)
    return float(course[max(0, place - 1)][1])


def tokens_until(task: Mapping[str, Any], method: str, wanted: float) -> float | None:
    """Tokens that a method's mean over its seeds takes to a score, in whole trainings; None if it is not reached."""
    is_loss = task["is_loss"]
    for place in np.linspace(task["training_tokens"], task["budget_tokens"], POINTS):
        mean = statistics.fmean(best_at(run["course"], place) for run in task["searches"][method])
        if mean <= wanted if is_loss else mean >= wanted:
            return float(place / task["training_tokens"])
    return None


def tune_table(report: Mapping[str, Any]) -> str:
    """What each method found with the same tokens, when it had what random search ends with, and what tests say."""
    parts = [
        _searches(name, task, report["budget_trainings"])
        for name, task in report["tasks"].items()
        if "searches" in task
    ]
    tests = [_tests(name, task) for name, task in report["tasks"].items() if "test_effect" in task]
    if tests:
        head = ["| on test rows | default | tuned | better by (95 %) | seeds |", "| --- | ---: | ---: | ---: | ---: |"]
        parts.append("\n".join([*head, *tests]))
    machine = report["provenance"]
    parts.append(f"Trained in {report['threads']} thread of {machine['processor']}.")
    return "\n\n".join(parts)


def _searches(name: str, task: Mapping[str, Any], budget: int) -> str:
    seeds = len(next(iter(task["searches"].values())))
    random = statistics.fmean(run["course"][-1][1] for run in task["searches"]["random"])
    lines = [
        f"| {name}: method | {METRICS[name]}, mean (least to most) | trials | trainings' worth of tokens to "
        "random search's end |",
        "| --- | ---: | ---: | ---: |",
        f"| default recipe | {task['default']:.4f} | | |",
    ]
    for method, runs in task["searches"].items():
        ends = [run["course"][-1][1] for run in runs]
        trials = statistics.fmean(run["trials"] for run in runs)
        needed = tokens_until(task, method, random)
        lines.append(
            f"| {method} | {statistics.fmean(ends):.4f} ({min(ends):.4f} to {max(ends):.4f}) | {trials:.0f} "
            f"| {'not reached' if needed is None else f'{needed:.1f}'} |"
        )
    if found := task.get("populations"):
        lines.append(_populations(found, random, is_loss=task["is_loss"], whole=task["training_tokens"]))
    best = task["extremes"][0 if task["is_loss"] else 1]
    lines += [
        "",
        f"{seeds} seeds each, tokens of {budget} whole trainings of {task['training_tokens']:,} tokens; the best of "
        f"the {len(task['table'])} trainings in the table has {best:.4f}.",
    ]
    return "\n".join(lines)


def _populations(runs: Sequence[Mapping[str, Any]], random: float, *, is_loss: bool, whole: int) -> str:
    """Of populations: real trainings, scored when all tokens are spent."""
    ends, members = [run["score"] for run in runs], runs[0]["members"]
    mean, tokens = statistics.fmean(ends), statistics.fmean(run["tokens"] for run in runs)
    is_there = mean <= random if is_loss else mean >= random
    return (
        f"| {POPULATION}, {len(runs)} seeds | {mean:.4f} ({min(ends):.4f} to {max(ends):.4f}) | {members} members "
        f"| {f'{tokens / whole:.1f}' if is_there else 'not reached'} |"
    )


def _tests(name: str, task: Mapping[str, Any]) -> str:
    effect = task["test_effect"]
    default, tuned = (statistics.fmean(task["tests"][which].values()) for which in ("default", "tuned"))
    return (
        f"| {name}, {METRICS[name].removeprefix('eval ')} | {default:.4f} | {tuned:.4f} "
        f"| {effect['mean']:+.4f} ({effect['low']:+.4f} to {effect['high']:+.4f}) | {effect['seeds']} |"
    )


if __name__ == "__main__":
    main()
