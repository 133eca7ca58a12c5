"""The answers that a measurement left in a results folder: found by a path, read, and matched row to row.

In the flow: `evaluate` writes <target>-answers.jsonl beside <target>.json and rows.json; compare.py reads them. Needs
neither torch nor the data.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from edgetune.errors import RunError
from edgetune.files import read_json, read_text
from edgetune.run_dir import RunDir, find_run

SUFFIX = "-answers.jsonl"
SET_FILE = "rows.json"
"""What the targets answered, beside their answers; evaluate.texts.EVAL_SET_FILE, which this module may not import."""


@dataclass(frozen=True)
class Answers:
    """What one target answered."""

    name: str
    """As the user named it."""
    path: Path
    rows: tuple[Mapping[str, Any], ...]
    """score.Answer or labeller.LabelAnswer as JSON values, in the order of the file."""
    metric: str | None
    """What counted as right when they were scored; None where nothing beside them says so."""
    settings: Mapping[str, Any]
    """Of the rows: positive_label, out_of_scope_label; {} where nothing beside them says so."""

    @property
    def are_labels(self) -> bool:
        """Whether they are labels, and no texts."""
        return "labels" in self.rows[0]


def read_answers(path: Path) -> Answers:
    """The answers of a run's bundle, or of whatever else a path names.

    `path`: a run folder (its bundle); the adapter, merged or bundle folder of a run; a folder with one file of answers;
    such a file, or the result beside it (results/base.json). Raises RunError where there is none, or a damaged one.
    """
    file = _find(path)
    name = file.name.removesuffix(SUFFIX)
    result, settings = (_beside(file.with_name(other)) for other in (f"{name}.json", SET_FILE))
    score = result.get("score")
    metric = score.get("metric") if isinstance(score, Mapping) else None
    kept = {key: settings.get(key) for key in ("positive_label", "out_of_scope_label")}
    return Answers(str(path), file, tuple(_read(file)), metric if isinstance(metric, str) else None, kept)


def paired(a: Answers, b: Answers) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each row of A with B's answer to it, in A's order.

    Rows are the same if question and right answer are; where a row is there twice, the first goes with the first. Plain
    text, of which answers keep no words, is told by file and line. Raises RunError unless all rows are the same.
    """
    if a.are_labels != b.are_labels:
        kinds = ["labels" if item.are_labels else "writes" for item in (a, b)]
        raise RunError(
            f"{a.name} {kinds[0]} texts and {b.name} {kinds[1]} them: their answers cannot be compared",
            cure="compare two models that label, or two that write",
        )
    keys_a, keys_b = ([_key(row) for row in item.rows] for item in (a, b))
    same = (Counter(keys_a) & Counter(keys_b)).total()
    if not same == len(keys_a) == len(keys_b):
        raise RunError(
            f"{a.name} has {len(keys_a):,} rows and {b.name} {len(keys_b):,}, of which {same:,} are the same",
            cure="score both on the same rows: edgetune evaluate PATH --data ROWS --out FOLDER, then compare folders",
        )
    waiting = defaultdict(list)
    for key, row in zip(reversed(keys_b), reversed(b.rows), strict=True):
        waiting[key].append(row)
    return [(row, waiting[key].pop()) for key, row in zip(keys_a, a.rows, strict=True)]


def question(row: Mapping[str, Any]) -> str:
    """What was asked, or the text that was labelled."""
    return str(row.get("text", row.get("prompt", "")))


def wanted(row: Mapping[str, Any]) -> str | None:
    """The right answer as text; None for plain text."""
    return _text(row.get("labels", row.get("reference")))


def answer(row: Mapping[str, Any]) -> str | None:
    """What was answered, as text; None where nothing was."""
    return _text(row.get("answer"))


def _text(value: Any) -> str | None:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _key(row: Mapping[str, Any]) -> str:
    asked, right = question(row), wanted(row)
    place = None if asked or right is not None else PurePath(str(row.get("place", ""))).name
    return json.dumps([asked, right, place], ensure_ascii=False)


def _find(path: Path) -> Path:
    if path.is_file():
        return path.with_name(f"{path.stem}{SUFFIX}") if path.suffix == ".json" else path
    run_dir = find_run(path)
    if run_dir is not None and (file := _of_run(run_dir, path)):
        if not file.is_file():
            raise RunError(
                f"{path}: has no saved answers ({file})", cure=f"score it: edgetune evaluate {path} --out FOLDER"
            )
        return file
    found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError(
            f"{path}: has the answers of several targets", cure=f"give one: {', '.join(str(item) for item in found)}"
        )
    raise RunError(
        f"{path}: no saved answers" if path.exists() else f"{path}: no such file or folder",
        cure="give a run folder, its adapter, merged or bundle folder, or the folder of `edgetune evaluate --out`",
    )


def _of_run(run_dir: RunDir, path: Path) -> Path | None:
    """The file of answers of a run's folder; None if the path is another one in it."""
    targets = {run_dir.path: "bundle", run_dir.adapter: "tuned", run_dir.merged: "merged", run_dir.bundle: "bundle"}
    names = {folder.resolve(): name for folder, name in targets.items()}
    name = names.get(path.resolve())
    return run_dir.results / f"{name}{SUFFIX}" if name else None


def _beside(path: Path) -> Mapping[str, Any]:
    """The JSON object of a file that may be missing or damaged: the answers are enough."""
    try:
        return read_json(path)
    except RunError:
        return {}


def _read(path: Path) -> Sequence[Mapping[str, Any]]:
    cure = "score it again: edgetune evaluate"
    rows = []
    for number, line in enumerate(read_text(path, cure=cure).splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}:{number}: is no JSON: {error}", cure=cure) from None
        if not (isinstance(row, dict) and "answer" in row and ("labels" in row or "reference" in row)):
            raise RunError(
                f"{path}:{number}: is no answer with its row",
                cure="give a file that `edgetune run` or `edgetune evaluate` wrote",
            )
        rows.append(row)
    if not rows:
        raise RunError(f"{path}: holds no answers", cure=cure)
    return rows
