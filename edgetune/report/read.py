"""Paths -> a report: run folders, studies, results of `edgetune evaluate`, reports of `edgetune bench`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgetune.errors import RunError
from edgetune.files import read_json
from edgetune.provenance import provenance
from edgetune.report.facts import Measurement, Problems, Report, Run, Study
from edgetune.report.measured import BENCH, read_bench, read_evaluation, table_models
from edgetune.report.run_folder import read_run
from edgetune.report.study import STUDY, read_study
from edgetune.run_dir import RunDir

SUMMARY = "summary.json"


def read_report(paths: Sequence[Path], *, title: str | None = None) -> Report:
    """Everything that the paths tell; what is missing, broken or of another version is named in `problems`.

    A path is a run folder, a study's, a folder that `edgetune evaluate` wrote, or a JSON file of `edgetune bench` or of
    either.
    Raises RunError if no path tells anything.
    """
    problems = Problems()
    names = unique_names(paths)
    found = [_read_one(path, name, problems) for path, name in zip(paths, names, strict=True)]
    runs = tuple(item for item in found if isinstance(item, Run))
    measurements = tuple(item for item in found if isinstance(item, Measurement))
    studies = tuple(item for item in found if isinstance(item, Study))
    if not (runs or measurements or studies):
        raise RunError(
            f"nothing to report: {'; '.join(problems.lines)}",
            cure="give run folders, studies, folders of `edgetune evaluate --out`, or JSON files of `edgetune bench`",
        )
    items = [item.name for group in (runs, measurements, studies) for item in group]
    default = items[0] if len(items) == 1 else f"{len(items)} results"
    return Report(title or default, runs, measurements, tuple(problems.lines), provenance(), studies)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, with as many before it as tell it from the others."""
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    depths = [1] * len(paths)
    while True:
        names = ["/".join(parts[-depth:]) for parts, depth in zip(whole, depths, strict=True)]
        twice = {name for name, count in Counter(names).items() if count > 1}
        longer = [
            depth + 1 if name in twice and depth < len(parts) else depth
            for name, depth, parts in zip(names, depths, whole, strict=True)
        ]
        if longer == depths:
            break
        depths = longer
    seen: Counter[str] = Counter()
    for number, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:  # the very same path twice
            names[number] = f"{name} ({seen[name]})"
    return names


def _read_one(path: Path, name: str, problems: Problems) -> Run | Measurement | Study | None:
    if RunDir(path).is_run:
        before = len(problems.lines)
        run = read_run(RunDir(path), name=name, path=str(path), problems=problems)
        problems.lines[before:] = dict.fromkeys(problems.lines[before:])
        return run
    if (path / STUDY).exists():
        return problems.attempt(str(path), lambda: read_study(path, name))
    if path.is_dir() and (path / SUMMARY).exists():
        path = path / SUMMARY
    elif path.is_dir():
        problems.lines.append(f"{path}: is no run folder, and has no {SUMMARY}")
        return None
    return problems.attempt(str(path), lambda: _read_file(path, name, problems))


def _read_file(path: Path, name: str, problems: Problems) -> Measurement:
    values = read_json(path)
    if values.get("format") == BENCH:
        return read_bench(values, name=name, path=str(path), problems=problems)
    if isinstance(values.get("results"), list):
        return read_evaluation(values, name=name, path=str(path), problems=problems)
    if isinstance(values.get("table"), list) and isinstance(values.get("metric"), str):
        models = table_models(values["table"], source=name, metric=values["metric"])
        return Measurement(name, str(path), tuple(models), None, values.get("provenance") or {})
    raise ValueError("is no result of edgetune bench, evaluate or run")
