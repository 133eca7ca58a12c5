"""One trial: a recipe trained on a base that stays loaded, and measured on the eval rows.

In the flow: values of the space -> recipe -> training in a folder of its own -> merged, rounded, scored -> the folder
goes. What a trial needs beyond its own recipe is here once for all of them: base, tokenizer, eval rows, data cache.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgetune.bundle.merge_base import choose_merge_base
from edgetune.bundle.task import TASKS as EXPORTS
from edgetune.data.folds import deal
from edgetune.data.prepare import longest_row, prepare
from edgetune.evaluate.live import Rows, eval_rows, held_out_rows, score_live, with_adapter
from edgetune.lora import task as adapters
from edgetune.lora.merge import MergeBase, merge
from edgetune.model.base import base_folder, empty_model, hash_base, load_base, load_tokenizer
from edgetune.model.device import device
from edgetune.model.lend import lent
from edgetune.model.memory import estimate, give_back_memory, room_bytes
from edgetune.model.on_device import expect_on_device
from edgetune.progress import Progress
from edgetune.quantize import task as deployed
from edgetune.recipe import ModelTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.train.schedule import auto_learning_rate
from edgetune.tune.folds import fold_recipe

if TYPE_CHECKING:
    from edgetune.train.result import TrainResult

DEVICE_BYTES_PER_S = 8e9
"""How fast a device reads its memory, for the objective "tokens_per_s": that of a phone, the same on every worker."""


@dataclass(frozen=True)
class TrialDir(RunDir):
    """A trial's run folder; the tokenised rows are the study's."""

    shared_cache: Path = Path()

    @property
    def cache(self) -> Path:
        """Tokenised data by content hash, of all trials."""
        return self.shared_cache


@dataclass(frozen=True)
class Measured:
    """What a trial was. Losses in nats per trained token (or text)."""

    score: float | None
    """By evaluate.metric on the eval rows, of the model that tune.score_of names; None where the metric is the loss."""
    loss: float
    """Of the same model on the same rows."""
    eval_loss: float | None
    """Of the adapter on its base, as training saw it."""
    rows: int
    """Scored."""
    tokens: int
    """Read in training."""
    steps: int
    train_s: float
    wall_s: float
    """Of it all: training, evaluations, merge, scoring."""
    train_bytes: int
    """Peak of the training, as planned: that of one process that trains many times cannot be told apart."""
    folds: tuple[float, ...] = ()
    """The score (where the metric is the loss, that) of each fold, where evaluate.folds are asked for."""

    def objective(self, name: str, recipe: Recipe) -> float:
        """One of tune.objectives: measured, or of the bundle that the recipe becomes, estimated."""
        if name in ("loss", "train_bytes"):
            return float(getattr(self, name))
        if name == "score":
            return self.loss if self.score is None else self.score
        device = expect_on_device(recipe)
        if name == "tokens_per_s":
            return device.tokens_per_s(DEVICE_BYTES_PER_S)
        return float(device.bundle_bytes if name == "bundle_bytes" else device.peak_bytes)


def mean_of(folds: Sequence[Measured]) -> Measured:
    """A trial of several trainings: means of what is scored, sums of what it took."""
    scores = [fold.score for fold in folds if fold.score is not None]
    losses = [fold.eval_loss for fold in folds if fold.eval_loss is not None]
    sums = {
        name: sum(getattr(fold, name) for fold in folds) for name in ("rows", "tokens", "steps", "train_s", "wall_s")
    }
    return Measured(
        score=statistics.fmean(scores) if scores else None,
        loss=statistics.fmean(fold.loss for fold in folds),
        eval_loss=statistics.fmean(losses) if losses else None,
        train_bytes=max(fold.train_bytes for fold in folds),
        folds=tuple(fold.loss if fold.score is None else fold.score for fold in folds),
        **sums,
    )


def _fold_of(progress: Progress, number: int, count: int, *, tokens: int) -> Progress:
    """Progress of a fold's training as that of the whole trial, which has read so many tokens before."""

    def tell(event: Mapping[str, Any]) -> None:
        if event.get("stage") == "train" and "steps" in event:
            steps = {"step": number * event["steps"] + event["step"], "steps": count * event["steps"]}
            event = {**event, **steps, "tokens": tokens + event.get("tokens", 0)}
        progress(event)

    return tell


class Bench(Protocol):
    """What a study asks of the place where its trials are made."""

    base_sha256: str

    @property
    def learning_rate(self) -> float:
        """The recipe's, with "auto" decided."""

    def peak_bytes(self, recipe: Recipe) -> int:
        """What training the recipe needs at its peak."""

    def room_bytes(self, recipe: Recipe) -> int:
        """What a training may take."""

    def measure(self, recipe: Recipe, folder: Path, *, progress: Progress | None = None) -> Measured:
        """A trial, made and scored."""


class Workbench:
    """What the trials of a recipe share. Nothing here grows from trial to trial."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """Reads the data into folder/cache and finds the base. Raises DataError, ModelError."""
        table = recipe.model
        self.recipe, self.cache = recipe, folder / "cache"
        self.base = base_folder(table)
        self.tokenizer = load_tokenizer(self.base, trust_remote_code=table.trust_remote_code)
        self.base_sha256 = hash_base(self.base)
        longest = longest_row(recipe, self.base, self.tokenizer)
        prepared = prepare(recipe, self.tokenizer, max_length=longest, cache=self.cache)
        self.labels, self.report = prepared.labels, prepared.report
        self.rows: Rows = eval_rows(recipe, self.base, labels=self.labels)
        if recipe.evaluate.folds:
            deal(recipe)  # rows that cannot be dealt are known before the first trial
        self._held: tuple[ModelTable, Any] | None = None

    @property
    def learning_rate(self) -> float:
        """The recipe's, with "auto" decided."""
        asked = self.recipe.train.learning_rate
        if asked != "auto":
            return asked
        model = empty_model(self.base, trust_remote_code=self.recipe.model.trust_remote_code)
        return auto_learning_rate(model.config)

    def peak_bytes(self, recipe: Recipe) -> int:
        """What training the recipe needs at its peak, as the planner says."""
        report = self.report
        return estimate(
            recipe,
            on=device().type,
            trained_share=report.trained_tokens / max(1, report.tokens),
            labels=report.labels,
            sample_tokens=min(report.longest, recipe.data.max_seq_len),
        ).peak_bytes

    def room_bytes(self, recipe: Recipe) -> int:
        """What a training may take: the budget, else what the machine has."""
        return room_bytes(recipe.budget, device().type)

    def measure(self, recipe: Recipe, folder: Path, *, progress: Progress | None = None) -> Measured:
        """Train the recipe in `folder`, going on from a checkpoint there, and score it; the folder stays.

        With evaluate.folds it is trained once a fold and scored on the rows held out of it: the mean over the folds.
        Raises what train and merge raise, and what `progress` raises: that is how a trial is given up.
        """
        count = recipe.evaluate.folds
        if not count:
            return self._measure(recipe, folder, progress)
        dealt, made = deal(recipe), list[Measured]()
        for number in range(count):
            place = folder / f"fold-{number + 1}"
            told = progress and _fold_of(progress, number, count, tokens=sum(fold.tokens for fold in made))
            made.append(self._measure(fold_recipe(recipe, dealt, number, place), place, told))
        return mean_of(made)

    def _measure(self, recipe: Recipe, folder: Path, progress: Progress | None) -> Measured:
        """One training, scored on the eval rows, or on those held out where it is a fold's."""
        started = time.perf_counter()
        run_dir = TrialDir(folder, shared_cache=self.cache)
        trained = self.train(recipe, run_dir, progress=progress)
        scored = self.score(recipe, run_dir, progress=progress)
        return Measured(
            score=scored.score,
            loss=scored.loss,
            eval_loss=trained.eval_loss,
            rows=scored.rows,
            tokens=trained.tokens,
            steps=trained.steps,
            train_s=trained.train_s,
            wall_s=time.perf_counter() - started,
            train_bytes=self.peak_bytes(recipe),
        )

    def train(self, recipe: Recipe, run_dir: RunDir, *, progress: Progress | None = None, **more: Any) -> TrainResult:
        """train.loop.train on the base that stays loaded; `more` are its other arguments. Raises what that raises."""
        give_back_memory()
        base = self._base(recipe.model)
        with lent(base):
            return train(recipe, run_dir, base=base, is_compared=True, progress=progress, **more)

    def score(self, recipe: Recipe, run_dir: RunDir, *, progress: Progress | None = None) -> Any:
        """The adapter that a training left in `run_dir`, scored as tune.score_of says: on the eval rows, or on those
        held out where evaluate.folds are asked for.
        """
        rows = self.rows
        if recipe.evaluate.folds:
            labels = adapters.TASKS[recipe.model.task].labels_of(run_dir.adapter)
            rows = held_out_rows(recipe, self.base, labels=labels)
        score = partial(score_live, tokenizer=self.tokenizer, rows=rows, progress=progress)
        if recipe.tune.score_of != "trained":
            return score(self._merged(recipe, run_dir, progress))
        base = self._base(recipe.model)
        with lent(base):
            return score(with_adapter(base, recipe, run_dir.adapter))

    def _merged(self, recipe: Recipe, run_dir: RunDir, progress: Progress | None) -> Any:
        """The merged model as tune.score_of names it, in torch; its folder is gone."""
        merge(run_dir.adapter, self.base, run_dir.merged, merge_base=self._merge_base(recipe, run_dir, progress))
        if recipe.tune.score_of == "exported":
            task = EXPORTS[recipe.model.task]
            model = task.as_exported(run_dir.merged, recipe, cache=run_dir.cache, progress=progress)
        else:
            model = deployed.TASKS[recipe.model.task].as_deployed(run_dir.merged, recipe)
        shutil.rmtree(run_dir.merged)
        return model

    def _merge_base(self, recipe: Recipe, run_dir: RunDir, progress: Progress | None) -> MergeBase:
        """What [export] says; of "auto" what is measured, where the trial is exported."""
        asked = recipe.export.merge_base
        if asked != "auto":
            return asked
        if recipe.tune.score_of == "deployed":
            return "trained"
        return choose_merge_base(recipe, run_dir, self.base, progress=progress).merge_base

    def _base(self, table: ModelTable) -> Any:
        """The base as [model] holds it; another one only where a trial asks for other bits."""
        if self._held is None or self._held[0] != table:
            self._held = None
            give_back_memory()
            self._held = (table, load_base(table))
        return self._held[1]
