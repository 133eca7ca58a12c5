"""The tasks that can be evaluated: what each has of its own. Importing them loads neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgetune.data.read import Split
from edgetune.evaluate import classification, generation
from edgetune.evaluate.resample import Interval
from edgetune.evaluate.target import Loaded, Target
from edgetune.progress import Progress
from edgetune.recipe import Recipe
from edgetune.task_names import TaskName


class Rows(Protocol):
    """Rows to score and how they are scored: a frozen dataclass that is written to a file."""

    @property
    def task(self) -> TaskName:
        """The task whose rows they are."""
        ...

    @property
    def rows(self) -> Sequence[Any]:
        """The rows that are scored."""
        ...

    @property
    def metric(self) -> str:
        """The name of the metric: what counts as right."""
        ...

    @property
    def confidence(self) -> float:
        """How sure the intervals are, a share."""
        ...

    @property
    def source(self) -> str:
        """Where the rows come from."""
        ...

    @property
    def source_rows(self) -> int:
        """How many rows were there, of which these were drawn."""
        ...

    @property
    def dropped(self) -> int:
        """Rows that cannot be scored and were left out."""
        ...

    @property
    def left_out(self) -> str:
        """What a user is told of the rows that were left out; "" if there are none."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything, hex."""
        ...

    @property
    def text_hash(self) -> str:
        """SHA-256, hex: equal where two targets see the same."""
        ...


class Score(Protocol):
    """What a target scored: a frozen dataclass. Shares in 0..1, losses in nats."""

    @property
    def metric(self) -> str:
        """The name of the metric: what counts as right."""
        ...

    @property
    def rows(self) -> int:
        """How many rows were scored."""
        ...

    @property
    def score(self) -> float | None:
        """The score by the metric; None when that is the loss."""
        ...

    @property
    def interval(self) -> Interval | None:
        """The interval of the score."""
        ...

    @property
    def loss(self) -> float:
        """The loss: the mean of what it counts, nats."""
        ...

    @property
    def loss_interval(self) -> Interval:
        """The interval of the loss."""
        ...

    @property
    def confidence(self) -> float:
        """How sure the intervals are, a share."""
        ...


class Speed(Protocol):
    """How fast a target answers one row at a time: a frozen dataclass."""

    @property
    def columns(self) -> Mapping[str, float]:
        """What a table shows of it, by the names of report.table.TableRow."""
        ...


class Task(Protocol):
    """What evaluating models of one task has of its own."""

    HAS_BASE: bool
    """Whether a base can be scored as it is; else it is training that makes what answers."""

    def owns(self, folder: Path, /) -> bool:
        """Whether an adapter or model folder says, by a file of its own, that it is of this task."""
        ...

    def with_settings_of(self, target: Target, recipe: Recipe, /) -> Recipe:
        """The recipe for a target that no run made, with what the target itself says of how it is asked."""
        ...

    def rows_of(self, target: Target, recipe: Recipe, split: Split, /) -> Rows:
        """A recipe's rows as a target reads them. Raises DataError, ModelError, BundleError."""
        ...

    def rows_of_base(self, base: Path, labels: Sequence[str], recipe: Recipe, split: Split, /) -> Rows:
        """A recipe's rows as a base reads them that is trained in this process; `labels` in the order of its logits."""
        ...

    def load(self, request: Mapping[str, Any], /) -> Loaded:
        """The target of a request (see child.py), in this process. Raises ModelError, BundleError."""
        ...

    def read_score(self, values: Mapping[str, Any], /) -> Score:
        """A score from its JSON values. Raises KeyError or TypeError."""
        ...

    def read_speed(self, values: Mapping[str, Any], /) -> Speed:
        """A speed from its JSON values. Raises TypeError."""
        ...

    def score_live(
        self, model: Any, tokenizer: Any, rows: Any, /, *, progress: Progress | None
    ) -> tuple[Score, Sequence[Any]]:
        """Score and answers of a torch model in this process on rows of this task; its mode becomes eval."""
        ...

    def with_adapter(self, base: Any, folder: Path, recipe: Recipe, /) -> Any:
        """A lent base with what an adapter folder holds, ready to be scored. Raises ModelError."""
        ...


TASKS: Mapping[TaskName, Task] = {"generation": generation, "classification": classification}


def task_of(folder: Path) -> TaskName:
    """The task of an adapter or model folder: the one that owns it, else generation, whose folders have no mark."""
    return next((name for name, task in TASKS.items() if task.owns(folder)), "generation")
