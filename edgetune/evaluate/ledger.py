"""The ledger: what each step from the base to the device did to the model, and how much of the gain is left at the end.

Reads what `evaluate` left in results/: one JSON file and one file of answers for each stage.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgetune.evaluate.closeness import Closeness, measure_closeness
from edgetune.evaluate.evaluate import Result
from edgetune.evaluate.gain import Gain, gain_kept
from edgetune.evaluate.resample import Bootstrap
from edgetune.evaluate.rows import even_places
from edgetune.files import read_json
from edgetune.text_table import aligned

REJECTION = {"in_scope_accuracy": "in scope, right", "out_of_scope_recall": "out of scope, found"}
"""What of a classifier's rejection stands in the ledger, and what its text calls it."""


@dataclass(frozen=True)
class Entry:
    """One stage of the ledger. Shares in 0..1, losses in nats per trained token (or text)."""

    stage: str
    name: str
    score: float | None
    """Of all rows; of a stage that was measured on some of them, the fine-tune's and what they differ by on those
    (the difference estimator, Cochran, Sampling Techniques, 1977, section 7.2), as its loss is."""
    interval: tuple[float, float] | None
    """None for a stage that was measured on some rows."""
    loss: float
    kl: float | None
    """Nats a token, of classifiers a label, from the fine-tune's distributions, see evaluate.distance."""
    same_next_token: float | None
    """Share of tokens, of labels, that the fine-tune finds likeliest, too."""
    same_answers: float | None
    """Share of rows with the fine-tune's answer, letter by letter."""
    first_difference: float | None
    """Of the answers that differ: median place of the first differing token, from 0."""
    rows: int
    """Rows it was measured on: graphs that are built for the ledger alone, on some of them."""
    disk_bytes: int
    gain_kept: float | None
    """Of the score (of the loss where there is no score)."""
    in_scope_accuracy: float | None = None
    """Of a classifier that may answer "unknown": the share of rows in scope that are accepted and right."""
    out_of_scope_recall: float | None = None
    """Of such a one, where there are rows out of scope: the share of them that are rejected."""


@dataclass(frozen=True)
class Kept:
    """What of the gain a stage has kept: on the score and on the loss."""

    score: Gain | None
    """None where nothing is generated."""
    loss: Gain | None
    """None where answers have no losses: labels."""

    def is_enough(self, floor: float) -> bool:
        """Whether no less than `floor` was kept of both."""
        return self.holds(floor)

    def holds(self, floor: float, most: float = math.inf) -> bool:
        """Whether a bundle may pass with both."""
        return all(gain.holds(floor, most) for gain in (self.score, self.loss) if gain is not None)


def gains(base: str | None, stage: str, results: Path, *, confidence: float, samples: int) -> Kept:
    """Gain kept by a stage, from the answers in the results folder; `base` names the base's, None is chance.

    Where training makes the head there is no base to compare with: the gain is over calling every text the commonest
    label.
    """
    shipped = _answers(results, stage)
    tuned = _of_rows(_answers(results, "tuned"), shipped)
    bootstrap = Bootstrap(samples, confidence)
    score = None
    if _points(tuned)[0] is not None:
        before = _points(_of_rows(_answers(results, base), shipped)) if base else _chance(tuned)
        score = gain_kept(before, _points(tuned), _points(shipped), bootstrap=bootstrap)
    if base is None:
        return Kept(score, None)
    first = _of_rows(_answers(results, base), shipped)
    nats = [[row["loss_sum"] for row in rows] for rows in (first, tuned, shipped)]
    counts = [row["trained_tokens"] for row in tuned]
    return Kept(score, gain_kept(*nats, counts=counts, is_loss=True, bootstrap=bootstrap))


def _points(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Each row's score, 0..1: of labels whether they are right; None where nothing was generated."""
    found = [row["score"] if "score" in row else row["correct"] for row in rows]
    return [None if value is None else float(value) for value in found]


def closeness(stage: str, results: Path, *, confidence: float, samples: int) -> Closeness:
    """How close a stage is to the fine-tune, from what `evaluate` left in the results folder."""
    shipped = _answers(results, stage)
    tuned = _of_rows(_answers(results, "tuned"), shipped)
    distance = read_json(results / f"{stage}.json").get("distance")
    kl, bootstrap = distance and distance["kl"], Bootstrap(samples, confidence)
    if "labels" in tuned[0]:
        same = [(1.0, float(one["answer"] == other["answer"])) for one, other in zip(tuned, shipped, strict=True)]
        return measure_closeness(kl, same, bootstrap, unit="label")
    pairs = list(zip(_points(tuned), _points(shipped), strict=True)) if _points(tuned)[0] is not None else []
    return measure_closeness(kl, pairs, bootstrap)


def make_entries(
    results: Sequence[tuple[str, Result]], folder: Path, *, tokenizer_file: Path, base: str | None
) -> list[Entry]:
    """The ledger's entries for (name, result) of each stage, in their order; `base` as in `gains`."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file)) if base is not None else None
    tuned = _answers(folder, "tuned")
    entries = []
    for name, result in results:
        stage, found = result.target.name, _answers(folder, result.target.name)
        pairs = [(_text(one), _text(other)) for one, other in zip(_of_rows(tuned, found), found, strict=True)]
        compared = [pair for pair in pairs if None not in pair]
        kept = None
        if stage not in ("base", "tuned"):
            kept = gains(base, stage, folder, confidence=result.score.confidence, samples=100)
        shown = kept and (kept.score or kept.loss)
        is_part = len(found) < len(tuned)
        entries.append(
            Entry(
                stage=stage,
                name=name,
                score=_estimate(kept.score, _mean(tuned)) if kept and is_part else result.score.score,
                interval=None if is_part else result.score.interval,
                loss=_estimate(kept.loss, _loss(tuned)) if kept and is_part else result.score.loss,
                kl=result.distance.kl if result.distance else None,
                same_next_token=result.distance.agreement if result.distance else None,
                same_answers=_share(one == other for one, other in compared) if compared else None,
                first_difference=_first_difference(compared, tokenizer),
                rows=result.score.rows,
                disk_bytes=result.disk_bytes,
                gain_kept=shown.kept if shown else None,
                **_rejection(result),
            )
        )
    return entries


def to_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The entries as JSON-able values."""
    return [asdict(entry) for entry in entries]


def plain(entries: Sequence[Entry]) -> str:
    """The ledger as aligned text, for a terminal."""
    head = ["step", "score", "loss", "KL to the fine-tune", "same next token", "same answers"]
    rejection = [name for name in REJECTION if any(getattr(entry, name) is not None for entry in entries)]
    lines = [[*head, *(REJECTION[name] for name in rejection), "rows", "on disk"]]
    for entry in entries:
        lines.append(
            [
                entry.name,
                _percent(entry.score),
                f"{entry.loss:.4f}",
                "-" if entry.kl is None else f"{entry.kl:.5f}",
                _percent(entry.same_next_token),
                _percent(entry.same_answers),
                *(_percent(getattr(entry, name)) for name in rejection),
                f"{entry.rows:,}",
                f"{entry.disk_bytes / 1024**2:,.1f} MiB",
            ]
        )
    return aligned(lines)


def _rejection(result: Result) -> dict[str, float | None]:
    """What a classifier's answers of "unknown" are worth; nothing of one that has no such answer."""
    found = getattr(result.score, "rejection", None) or {}
    return {name: found.get(name) for name in REJECTION}


def _answers(folder: Path, stage: str) -> list[dict[str, Any]]:
    text = (folder / f"{stage}-answers.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _of_rows(answers: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of a target to the rows of `others`, who answered all rows or some at even distances."""
    return [answers[index] for index in even_places(len(answers), len(others))]


def _estimate(gain: Gain | None, whole: float | None) -> Any:
    """The mean over all rows, of which `gain` knows some: the fine-tune's over `whole`, and what they differ by."""
    return None if gain is None or whole is None else whole + gain.shipped - gain.tuned


def _mean(tuned: Sequence[Mapping[str, Any]]) -> float | None:
    points = _points(tuned)
    return None if points[0] is None else statistics.mean(points)


def _loss(tuned: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(row["loss_sum"] for row in tuned) / max(1, sum(row["trained_tokens"] for row in tuned)))


def _chance(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of rows that are right if all are called what most are."""
    return Counter(tuple(sorted(row["labels"])) for row in rows).most_common(1)[0][1] / len(rows)


def _text(row: Mapping[str, Any]) -> str | None:
    """A row's answer: what was generated, or the labels."""
    answer = row["answer"]
    return answer if answer is None or isinstance(answer, str) else json.dumps(answer)


def _share(claims: Any) -> float:
    found = [bool(claim) for claim in claims]
    return sum(found) / len(found)


def _first_difference(pairs: Sequence[tuple[Any, Any]], tokenizer: Any) -> float | None:
    places = []
    for one, other in pairs:
        if tokenizer is not None and one != other:
            ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in (one, other)]
            same = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
            places.append(same)
    return statistics.median(places) if places else None


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{share:.1%}"
