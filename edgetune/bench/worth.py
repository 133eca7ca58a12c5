"""What each target of a bench is worth: score, loss, perplexity, distance, and the answers that it gave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.bench.left_out import LeftOut
from edgetune.bench.measure import measure_harness
from edgetune.bench.noise import absent
from edgetune.bench.settings import HarnessTask, Settings
from edgetune.bench.subjects import Subject
from edgetune.bench.task import TASKS
from edgetune.evaluate.evaluate import evaluate
from edgetune.evaluate.task import Rows
from edgetune.evaluate.texts import EVAL_SET_FILE, prepare_eval_set
from edgetune.files import write_json, write_text
from edgetune.progress import Progress

NO_ROWS = "no rows: give some with --data"
SCORES = ("score", "loss", "perplexity", "kl")


@dataclass
class Worth:
    """What was found of all targets; by their names."""

    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    """What the scores are of."""
    reference: str | None = None
    """Whose probabilities the distances are from."""


def score_on_rows(
    subjects: Sequence[Subject],
    truth: Subject | None,
    answers: Path,
    *,
    work: Path,
    left_out: LeftOut,
    progress: Progress,
) -> Worth:
    """Score each on its rows, the reference first; where that fails the next one takes its place.

    Each target's answers go to answers/NAME, as `edgetune evaluate --out` writes them; `work` is a folder to use.
    """
    found = Worth({subject.name: {name: absent(NO_ROWS) for name in SCORES} for subject in subjects})
    tokens: str | None = None
    for subject in sorted(subjects, key=lambda subject: subject is not truth):
        if subject.asked is None:
            continue
        folder = answers / subject.name
        eval_set = left_out.attempt(
            subject.name, partial(prepare_eval_set, subject.asked.recipe, subject.asked.reader, folder)
        )
        if eval_set is None:
            continue
        is_same_text = tokens in (None, eval_set.text_hash)
        result = left_out.attempt(
            subject.name,
            partial(
                evaluate,
                subject.target,
                folder / EVAL_SET_FILE,
                folder,
                distributions=work / "distributions.npy" if is_same_text else None,
                is_reference=found.reference is None,
                budget=subject.asked.recipe.budget,
                progress=progress,
            ),
        )
        if result is None:
            continue
        tokens, found.reference = tokens or eval_set.text_hash, found.reference or subject.name
        found.data = found.data or {**_data(eval_set), "seed": subject.asked.recipe.train.seed}
        found.columns[subject.name] = {
            **TASKS[subject.target.task].worth(result, is_same_text),
            "answers": f"{subject.name}/{subject.name}-answers.jsonl",
        }
    return found


def score_on_task(
    subject: Subject, task: HarnessTask, settings: Settings, answers: Path, progress: Progress
) -> dict[str, Any]:
    """The columns of a score by a task of lm-eval; its answers go to answers/NAME-lm-eval. Raises DataError."""
    found = measure_harness(subject.target, task, settings, progress)
    rows: Sequence[Mapping[str, Any]] | None = found.pop("answers", None)
    if rows is None:
        return {"score": found}
    folder = f"{subject.name}-lm-eval"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(answers / folder / f"{subject.name}-answers.jsonl", "".join(lines))
    by = "correct" if all(row["correct"] is not None for row in rows) else "score"
    write_json(answers / folder / f"{subject.name}.json", {"score": {"metric": by}})
    return {"score": found, "answers": f"{folder}/{subject.name}-answers.jsonl"}


def _data(eval_set: Rows) -> dict[str, Any]:
    return {
        "source": eval_set.source,
        "metric": eval_set.metric,
        "rows": len(eval_set.rows),
        "source_rows": eval_set.source_rows,
        "dropped": eval_set.dropped,
        "confidence": eval_set.confidence,
    }
