"""What the searches are compared on: two tasks of few rows, so that one core can train a whole grid."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import data_folder, minilm
from benchmarks.tune_table import Axis
from edgetune.data.iob import NAMES
from edgetune.files import write_text
from edgetune.recipe import Recipe, parse_recipe


@dataclass(frozen=True)
class Task:
    """A recipe, its rows, and the grid that is trained."""

    recipe: str
    rows: Mapping[str, int]
    """Split -> rows drawn; of BANKING77 for each label."""
    axes: tuple[Axis, ...]
    worst_score: float


TASKS = {
    "nano-snips": Task(
        """
[model]
base = "edgetune:nano"
[data]
train = "{data}/train"
eval = "{data}/dev"
max_seq_len = 256
[lora]
r = 16
[train]
epochs = 1
batch_size = 4
gradient_accumulation_steps = 1
[evaluate]
metric = "loss"
""",
        {"train": 160, "dev": 40, "test": 200},
        (
            Axis("train.learning_rate", (2e-4, 6e-4, 2e-3, 6e-3, 2e-2, 6e-2)),
            Axis("lora.r", (4, 32)),
        ),
        20.0,
    ),
    "minilm-banking77": Task(
        """
[model]
base = "{base}"
task = "classification"
[data]
train = "{data}/train.jsonl"
eval = "{data}/dev.jsonl"
max_seq_len = 64
[train]
epochs = 2
batch_size = 16
""",
        {"train": 4, "dev": 2, "test": 4},
        (
            Axis("train.learning_rate", (2.5e-5, 1e-4, 4e-4, 1.6e-3, 6.4e-3, 2.56e-2)),
            Axis("lora.r", (4, 32)),
        ),
        0.0,
    ),
}


def task_recipe(task: str, work: Path) -> Recipe:
    """The task's recipe, its rows drawn into `work` unless they are there."""
    folder = work / task / "rows"
    draw = _draw_snips if task == "nano-snips" else _draw_banking77
    if not folder.exists():
        draw(TASKS[task].rows, folder)
    return _parsed(task, str(folder), str(minilm()) if "{base}" in TASKS[task].recipe else "")


def _parsed(task: str, data: str, base: str) -> Recipe:
    text = TASKS[task].recipe.format(data=data, base=base)
    test = f"{data}/test" + ("" if task == "nano-snips" else ".jsonl")
    return parse_recipe(text, source=task, name=task, overrides=[f"data.test={test}"])


def _draw_snips(rows: Mapping[str, int], out: Path) -> None:
    """So many seeded rows of each split, as the folders they come in."""
    for split, count in rows.items():
        lines = {name: (data_folder() / "snips" / split / name).read_text("utf-8").splitlines() for name in NAMES}
        chosen = random.Random(0).sample(range(len(lines[NAMES[0]])), count)
        for name in NAMES:
            (out / split).mkdir(parents=True, exist_ok=True)
            write_text(out / split / name, "".join(f"{lines[name][at]}\n" for at in chosen))


def _draw_banking77(rows: Mapping[str, int], out: Path) -> None:
    """So many seeded rows a label: train and dev from the training split, test from the test split."""
    out.mkdir(parents=True)
    for source, splits in (("train", ("train", "dev")), ("test", ("test",))):
        with (data_folder() / "banking77" / f"{source}.csv").open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        random.Random(0).shuffle(found)
        left = _by_label(found)
        for split in splits:
            drawn = [label.pop() for label in left.values() for _ in range(rows[split])]
            write_text(out / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in drawn))


def _by_label(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["category"], []).append({"text": row["text"], "label": row["category"]})
    return dict(sorted(found.items()))
