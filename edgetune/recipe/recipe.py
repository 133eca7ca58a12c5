"""The recipe: all tables of one run, what follows from them, and how they are written back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from edgetune.recipe.classification import ClassifyTable
from edgetune.recipe.tables import (
    TABLES,
    BudgetTable,
    DataTable,
    EvaluateTable,
    ExportTable,
    LoraTable,
    ModelTable,
    TrainTable,
    TuneTable,
)
from edgetune.recipe.task import OWN_TABLES, TASKS, Task
from edgetune.recipe.values import as_toml


@dataclass(frozen=True)
class Recipe:
    """One run, whole. `name` is the file's stem and the default name of the run folder."""

    model: ModelTable
    data: DataTable
    lora: LoraTable = field(default_factory=LoraTable)
    train: TrainTable = field(default_factory=TrainTable)
    export: ExportTable = field(default_factory=ExportTable)
    evaluate: EvaluateTable = field(default_factory=EvaluateTable)
    budget: BudgetTable = field(default_factory=BudgetTable)
    classify: ClassifyTable = field(default_factory=ClassifyTable)
    tune: TuneTable = field(default_factory=TuneTable)
    name: str = "run"

    @property
    def of_task(self) -> Task:
        """What its task means for it."""
        return TASKS[self.model.task]

    @property
    def learned(self) -> str:
        """What the loss is a mean over, one of them."""
        return self.of_task.learned

    @property
    def batch_size(self) -> int:
        """train.batch_size as a number; the default's while it is "auto", which model.fit.settle decides."""
        size, defaults = self.train.batch_size, self.of_task.defaults.get("train", {})
        return int(size if size != "auto" else defaults.get("batch_size", TrainTable.batch_size))

    @property
    def gradient_checkpointing(self) -> bool:
        """train.gradient_checkpointing; no while it is "auto", which model.fit.settle decides."""
        return self.train.gradient_checkpointing is True

    def is_idle(self, key: str) -> bool:
        """Whether a key like "data.packing" does nothing for the recipe's task."""
        return key in self.of_task.idle_keys

    @property
    def idle_keys(self) -> tuple[str, ...]:
        """Keys that the recipe gives a value of their own and that do nothing for its task."""
        named = [key.partition(".")[::2] for key in self.of_task.idle_keys]
        return tuple(
            f"{table}.{key}"
            for table, key in named
            if getattr(getattr(self, table), key) != getattr(TABLES[table], key)
        )

    def with_classify(self, **changes: Any) -> Recipe:
        """The recipe with other values in [classify]."""
        return dataclasses.replace(self, classify=dataclasses.replace(self.classify, **changes))

    def to_toml(self) -> str:
        """The recipe as TOML, every key that has a value; loads back to an equal recipe."""
        parts = []
        for table in TABLES:
            is_foreign = table in OWN_TABLES and table not in self.of_task.tables
            if is_foreign or (table == "tune" and self.tune == TuneTable()):
                continue
            values = dataclasses.asdict(getattr(self, table))
            lines = [f"{key} = {as_toml(value)}" for key, value in values.items() if value not in (None, {})]
            if lines:
                parts.append("\n".join([f"[{table}]", *lines]))
        return "\n\n".join(parts) + "\n"
