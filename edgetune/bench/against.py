"""A bench against an earlier one: whether each figure agrees within the stated spread, or is better or worse."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgetune.bench.bench import FORMAT, VERSION
from edgetune.bench.noise import agree, is_absent
from edgetune.bench.table import cell
from edgetune.errors import RunError
from edgetune.files import read_json
from edgetune.report.columns import Column, column
from edgetune.report.figures import figures_of, place

Verdict = Literal["agrees", "better", "worse", "differs", "cannot be told"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SCORED = ("score", "loss", "perplexity", "kl_to_reference", "same_next_token", "fields_f1", "valid", "ece")
"""Begin the paths of figures that rows decide."""
CURE = "give a file that `edgetune bench --out` wrote"


@dataclass(frozen=True)
class Compared:
    """A figure of a target, before and now."""

    target: str
    key: str
    title: str
    before: str
    now: str
    """As tables show them."""
    verdict: Verdict
    """"differs" where more is neither better nor worse."""
    reason: str = ""
    """Why it cannot be told."""


def read_before(path: Path) -> dict[str, Any]:
    """An earlier report. Raises RunError if it is none, or of another version."""
    found = read_json(path, cure=CURE)
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise RunError(f"{path}: is no report of edgetune bench of version {VERSION}", cure=CURE)
    targets = found.get("targets")
    if not isinstance(targets, list) or not all(isinstance(item, dict) and "name" in item for item in targets):
        raise RunError(f"{path}: has no targets", cure=CURE)
    return found


def compare_with(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """JSON-able values: "counts" of verdicts, "figures" as Compared has them, "measured_otherwise" what else differs.

    Every figure is compared of those targets of `now` that `before`, the report in `path`, has by the same name. Two
    summaries agree where noise.agree says so, two scores where each lies in the other's interval, sizes where they are
    the same. Nothing is said of figures without a spread (of one process), and of scores on other rows.
    """
    is_on_same_rows = _rows(before) == _rows(now)
    earlier = {item["name"]: figures_of(item) for item in before["targets"]}
    found = [
        compared
        for item in now["targets"]
        if item["name"] in earlier
        for compared in _target(str(item["name"]), earlier[item["name"]], figures_of(item), is_on_same_rows)
    ]
    counts = Counter(item.verdict for item in found)
    return {
        "file": str(path),
        "measured_otherwise": list(_conditions(before, now)),
        "counts": {verdict: counts[verdict] for verdict in VERDICTS},
        "figures": [dataclasses.asdict(item) for item in found],
    }


def lines(compared: Mapping[str, Any]) -> Iterator[str]:
    """The same for a terminal: how many agree, what was measured otherwise, then each figure."""
    told = ", ".join(f"{count} {verdict}" for verdict, count in compared["counts"].items() if count)
    yield f"against {compared['file']}: {told or 'no target of the same name'}"
    yield from (f"measured otherwise: {line}" for line in compared["measured_otherwise"])
    rows = [
        (item["verdict"], item["target"], item["title"], f"{item['before']} -> {item['now']}")
        for item in compared["figures"]
    ]
    widths = [max(map(len, texts)) for texts in zip(*rows, strict=True)]
    for row, item in zip(rows, compared["figures"], strict=True):
        reason = f"  ({item['reason']})" if item["reason"] else ""
        yield f"{'  '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))}{reason}".rstrip()


def _conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Settings, processor and cores that are not the same."""
    for part, keys in (
        ("settings", sorted(now["settings"].keys() - {"cores"})),
        ("provenance", ("processor", "cores")),
    ):
        old, new = before.get(part) or {}, now[part]
        for key in keys:
            if json.dumps(old.get(key)) != json.dumps(new[key]):
                yield f"{key.replace('_', ' ')} {old.get(key)}, now {new[key]}"


def _rows(report: Mapping[str, Any]) -> Any:
    """What its scores are of."""
    data = report.get("data") or {}
    return [data.get(key) for key in ("source", "rows", "source_rows", "dropped")], report.get("task")


def _target(name: str, before: Mapping[str, Any], now: Mapping[str, Any], is_on_same_rows: bool) -> Iterator[Compared]:
    for key in sorted(set(before) & set(now), key=lambda key: (place(key), key)):
        old, new, shown = before[key], now[key], column(key)
        if is_absent(old) and is_absent(new):
            continue
        verdict, reason = _judged(old, new, shown)
        if key.startswith(SCORED) and not is_on_same_rows:
            verdict, reason = "cannot be told", "other rows"
        yield Compared(name, key, shown.title, cell(shown, old)[0], cell(shown, new)[0], verdict, reason)


def _judged(old: Mapping[str, Any], new: Mapping[str, Any], shown: Column) -> tuple[Verdict, str]:
    if is_absent(old) or is_absent(new):
        return "cannot be told", str((old if is_absent(old) else new)["absent"])
    first, second = (value["value"] if "value" in value else value["median"] for value in (old, new))
    is_exact = set(old) == set(new) == {"value"} and shown.unit == "bytes"
    if first == second:
        return "agrees", ""
    if not is_exact:
        is_same = _agree(old, new, first, second)
        if is_same is None:
            return "cannot be told", "no spread is known"
        if is_same:
            return "agrees", ""
    if shown.better is None:
        return "differs", ""
    return ("better" if (second > first) == (shown.better == "more") else "worse"), ""


def _agree(old: Mapping[str, Any], new: Mapping[str, Any], first: float, second: float) -> bool | None:
    """Whether noise may be all there is between two values; None where their noise is not known."""
    if old.get("interval") and new.get("interval"):
        return bool(_holds(old["interval"], second) and _holds(new["interval"], first))
    if old.get("spread") is not None and new.get("spread") is not None:
        return agree(old, new)
    return None


def _holds(interval: Sequence[float], value: float) -> bool:
    return interval[0] <= value <= interval[1]
