"""Cross-validation: the recipe trained once a fold on one loaded base, scored on the rows that it has not seen.

In the flow: data/folds.py deals the training rows -> for each fold a training in RUN/folds/fold-k, scored as the base
with its adapter -> results/folds.json, and every row's answer by the model that did not learn it in
results/folds-answers.jsonl. The test rows are not looked at.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.data.folds import HELD_OUT, TRAIN, Dealt, deal, write_fold
from edgetune.data.prepare import examples
from edgetune.data.replay import write_rows
from edgetune.data.splits import has_eval_rows
from edgetune.errors import RecipeError
from edgetune.evaluate.live import answer_live, held_out_rows, with_adapter
from edgetune.files import atomic_file, read_json, write_json
from edgetune.hashes import hash_file, hash_values
from edgetune.launch import launched
from edgetune.lora import task as adapters
from edgetune.model.base import base_folder, hash_base, load_base, load_tokenizer
from edgetune.model.lend import lent
from edgetune.model.memory import give_back_memory
from edgetune.progress import Progress, as_stage
from edgetune.provenance import provenance
from edgetune.recipe import TABLES, Recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train

EVAL = "eval.jsonl"


@dataclass(frozen=True)
class Spread:
    """What the folds differ by. Their trainings share rows, so this is no standard error of the mean.

    Source: Bengio and Grandvalet 2004, No Unbiased Estimator of the Variance of K-Fold Cross-Validation.
    """

    mean: float
    std: float
    """Of the folds, by N - 1."""
    least: float
    most: float


@dataclass(frozen=True)
class CrossValidation:
    """What the folds scored. Shares in 0..1, losses in nats per trained token (or text)."""

    metric: str
    folds: int
    folds_by: str | None
    rows: int
    """Dealt; each is held out of one fold."""
    groups: int
    score: Spread | None
    """By evaluate.metric; None where that is the loss."""
    loss: Spread
    pooled: float | None
    """The mean over all answered rows, where the metric scores each row alone."""
    each: tuple[Mapping[str, Any], ...]
    """A fold's rows, score, loss, the step of its best adapter and its training time."""

    @property
    def summary(self) -> str:
        """The scores in one line."""
        found, form = (self.loss, ".4f") if self.score is None else (self.score, ".1%")
        std = f"{found.std:.4f}" if self.score is None else f"{100 * found.std:.1f}"
        by = f", {self.groups:,} groups by {self.folds_by!r}" if self.folds_by else ""
        return (
            f"{self.metric} {found.mean:{form}} ± {std} over {self.folds} folds ({found.least:{form}} to "
            f"{found.most:{form}}) of {self.rows:,} rows{by}"
        )


def refuse_folds_of_many(recipe: Recipe) -> None:
    """Raises RecipeError where a recipe asks for folds and several processes were started."""
    if recipe.evaluate.folds and launched().count > 1:
        raise RecipeError(
            "evaluate.folds is for one process", cure="start it without a launcher, or leave evaluate.folds out"
        )


def cross_validate(recipe: Recipe, run_dir: RunDir, *, progress: Progress | None = None) -> CrossValidation:
    """Train and score every fold of a recipe that asks for evaluate.folds; those done before are not done again.

    A fold's training is the recipe's own, on its rows: with the recipe's eval rows, or some of the fold's own, to
    choose the best adapter by. Raises DataError as `deal`, and what train raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "evaluate.folds: several processes train one model", cure="leave folds out, or use one process"
        )
    table, dealt = recipe.model, deal(recipe)
    path = base_folder(table)
    base: Any = None
    count = recipe.evaluate.folds or 0
    for number in range(count):
        place = run_dir.folds / f"fold-{number + 1}"
        fold = fold_recipe(recipe, dealt, number, place)
        files = [hash_file(Path(name)) for name in (fold.data.train, fold.data.eval, fold.data.test) if name]
        tables = [getattr(recipe, name) for name in TABLES if name not in ("tune", "export", "budget")]
        inputs, stage = hash_values(files, hash_base(path), *tables), f"fold-{number + 1}"
        if not (run_dir.is_current(stage, inputs) and _file(run_dir, number).is_file()):
            if base is None:
                give_back_memory()
                base = load_base(table)
            _measure(
                fold, RunDir(place), base, _file(run_dir, number), as_stage(progress, f"fold {number + 1} of {count}")
            )
            run_dir.finish(stage, inputs)
        shutil.rmtree(place)
    result = _total(recipe, dealt, [read_json(_file(run_dir, number)) for number in range(count)])
    _write(run_dir, result, recipe)
    shutil.rmtree(run_dir.folds, ignore_errors=True)
    return result


def fold_recipe(recipe: Recipe, dealt: Dealt, number: int, place: Path) -> Recipe:
    """The recipe of one fold, its rows written into a folder of their own: test rows are those held out."""
    rows = place / "rows"
    write_fold(recipe, dealt, number, rows)
    has_own = has_eval_rows(recipe.data)
    if has_own:
        write_rows(rows / EVAL, examples(recipe, "eval"), recipe)
    data = dataclasses.replace(
        recipe.data,
        train=str(rows / TRAIN),
        eval=str(rows / EVAL) if has_own else None,
        test=str(rows / HELD_OUT),
        format="auto",
        columns={},
        max_train_rows=None,
    )
    return dataclasses.replace(recipe, data=data)


def _measure(recipe: Recipe, run_dir: RunDir, base: Any, file: Path, progress: Progress | None) -> None:
    """Train one fold on a base that stays, score the rows held out; writes the file, whole or not at all."""
    table = recipe.model
    path = base_folder(table)
    tokenizer = load_tokenizer(path, trust_remote_code=table.trust_remote_code)
    with lent(base):
        trained = train(recipe, run_dir, base=base, progress=progress)
    labels = adapters.TASKS[recipe.model.task].labels_of(run_dir.adapter)
    rows = held_out_rows(recipe, path, labels=labels)
    with lent(base):
        score, answers = answer_live(with_adapter(base, recipe, run_dir.adapter), tokenizer, rows, progress=progress)
    kept = {name: getattr(score, name) for name in ("metric", "rows", "score", "loss")}
    times = {"best_step": trained.best_step, "steps": trained.steps, "train_s": round(trained.train_s, 3)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**kept, **times, "answers": [dataclasses.asdict(answer) for answer in answers]})


def _total(recipe: Recipe, dealt: Dealt, found: Sequence[Mapping[str, Any]]) -> CrossValidation:
    scores = [fold["score"] for fold in found if fold["score"] is not None]
    points = [answer.get("score", answer["correct"]) for fold in found for answer in fold["answers"]]
    is_by_row = recipe.evaluate.metric not in ("loss", "macro_f1", "f1")
    return CrossValidation(
        metric=recipe.evaluate.metric,
        folds=len(found),
        folds_by=recipe.evaluate.folds_by,
        rows=len(dealt.rows),
        groups=dealt.groups,
        score=_spread(scores) if scores else None,
        loss=_spread([fold["loss"] for fold in found]),
        pooled=statistics.fmean(points) if is_by_row else None,
        each=tuple({key: value for key, value in fold.items() if key != "answers"} for fold in found),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values), min(values), max(values))


def _write(run_dir: RunDir, result: CrossValidation, recipe: Recipe) -> None:
    """results/folds.json and results/folds-answers.jsonl, as `edgetune compare` reads them."""
    values = dataclasses.asdict(result)
    score = {"metric": result.metric, **(values["score"] or {})}
    with (
        atomic_file(run_dir.results / "folds-answers.jsonl") as temporary,
        temporary.open("w", encoding="utf-8") as out,
    ):
        for number in range(result.folds):
            for answer in read_json(_file(run_dir, number))["answers"]:
                out.write(json.dumps({**answer, "fold": number + 1}, ensure_ascii=False) + "\n")
    write_json(run_dir.results / "folds.json", {**values, "score": score, "provenance": provenance(recipe.train.seed)})


def _file(run_dir: RunDir, number: int) -> Path:
    return run_dir.results / "folds" / f"fold-{number + 1}.json"
