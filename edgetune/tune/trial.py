"""One trial: a recipe trained on a base that stays loaded, and measured on the eval rows.

In the flow: values of the space -> recipe -> training in a folder of its own -> merged, rounded, scored -> the folder
goes. What a trial needs beyond its own recipe is here once for all of them: base, tokenizer, eval rows, data cache.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgetune.data.prepare import longest_row, prepare
from edgetune.evaluate.live import Rows, eval_rows, score_live, with_adapter
from edgetune.lora.merge import MergeBase, merge
from edgetune.model.base import empty_model, hash_base, load_base, load_tokenizer, resolve_base
from edgetune.model.device import device
from edgetune.model.lend import lent
from edgetune.model.memory import estimate, give_back_memory, room_bytes
from edgetune.model.on_device import expect_on_device
from edgetune.quantize import task as deployed
from edgetune.recipe import ModelTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.train.schedule import auto_learning_rate

if TYPE_CHECKING:
    from edgetune.train.loop import TrainResult

Progress = Callable[[Mapping[str, Any]], None]
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
        self.base = resolve_base(table.base, table.revision, trust_remote_code=table.trust_remote_code)
        self.tokenizer = load_tokenizer(self.base, trust_remote_code=table.trust_remote_code)
        self.base_sha256 = hash_base(self.base)
        longest = longest_row(recipe, self.base, self.tokenizer)
        prepared = prepare(recipe, self.tokenizer, max_length=longest, cache=self.cache)
        self.labels, self.report = prepared.labels, prepared.report
        self.rows: Rows = eval_rows(recipe, self.base, labels=self.labels)
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
        return room_bytes(recipe, device().type)

    def measure(self, recipe: Recipe, folder: Path, *, progress: Progress | None = None) -> Measured:
        """Train the recipe in `folder`, going on from a checkpoint there, and score it; the folder stays.

        Raises what train and merge raise, and what `progress` raises: that is how a trial is given up.
        """
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
            return train(recipe, run_dir, base=base, progress=progress, **more)

    def score(self, recipe: Recipe, run_dir: RunDir, *, progress: Progress | None = None) -> Any:
        """The adapter that a training left in `run_dir`, scored on the eval rows as tune.score_of says."""
        score = partial(score_live, tokenizer=self.tokenizer, rows=self.rows, progress=progress)
        if recipe.tune.score_of == "deployed":
            merge_base: MergeBase = "original" if recipe.export.merge_base == "original" else "trained"
            merge(run_dir.adapter, self.base, run_dir.merged, merge_base=merge_base)
            model = deployed.TASKS[recipe.model.task].as_deployed(run_dir.merged, recipe)
            shutil.rmtree(run_dir.merged)
            return score(model)
        base = self._base(recipe.model)
        with lent(base):
            return score(with_adapter(base, recipe, run_dir.adapter))

    def _base(self, table: ModelTable) -> Any:
        """The base as [model] holds it; another one only where a trial asks for other bits."""
        if self._held is None or self._held[0] != table:
            self._held = None
            give_back_memory()
            self._held = (table, load_base(table))
        return self._held[1]
