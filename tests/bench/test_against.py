"""A bench against an earlier one: edgetune/bench/against.py."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from made_run import bench_report

from edgetune.bench.against import compare_with, lines, read_before
from edgetune.errors import RunError

PATH = Path("old.json")


def verdicts(before: dict[str, Any], now: dict[str, Any], target: str = "base") -> dict[str, str]:
    found = compare_with(before, now, PATH)
    return {item["key"]: item["verdict"] for item in found["figures"] if item["target"] == target}


def changed(key: str, factor: float) -> dict[str, Any]:
    """A report whose base has a summary times a factor."""
    now: dict[str, Any] = copy.deepcopy(bench_report())
    found = now["targets"][0][key]
    for part in ("median", "least", "most", "p95"):
        found[part] *= factor
    return now


def test_the_same_again_agrees_in_every_figure() -> None:
    found = compare_with(bench_report(), bench_report(), PATH)
    assert found["counts"]["agrees"] == len(found["figures"]) > 10
    assert found["measured_otherwise"] == []


@pytest.mark.parametrize(
    ("key", "factor", "verdict"),
    [
        ("decode_tokens_per_s", 1.1, "agrees"),
        ("decode_tokens_per_s", 3.0, "better"),
        ("decode_tokens_per_s", 0.3, "worse"),
        ("load_s", 3.0, "worse"),
        ("load_s", 0.3, "better"),
    ],
)
def test_a_figure_is_better_or_worse_beyond_its_noise(key: str, factor: float, verdict: str) -> None:
    found = verdicts(bench_report(), changed(key, factor))
    assert found.pop(key) == verdict
    assert found.pop(f"{key}.p95", "cannot be told") == "cannot be told"
    assert set(found.values()) == {"agrees"}


def test_a_score_is_judged_by_its_interval_and_a_size_by_itself() -> None:
    now: dict[str, Any] = copy.deepcopy(bench_report())
    now["targets"][0]["score"] |= {"value": 0.9, "interval": [0.85, 0.95]}
    now["targets"][0]["loss"] |= {"value": 0.11}
    now["targets"][0]["disk_bytes"] += 1
    found = verdicts(bench_report(), now)
    assert (found["score.json"], found["loss"], found["disk_bytes"]) == ("better", "agrees", "worse")


def test_without_a_spread_and_on_other_rows_nothing_is_claimed() -> None:
    now: dict[str, Any] = changed("decode_tokens_per_s", 3.0)
    now["targets"][0]["decode_tokens_per_s"]["spread"] = None
    now["targets"][0]["score"]["value"] = 0.1
    now["data"] = {**now["data"], "source": "other.jsonl"}
    now["settings"] = {**now["settings"], "threads": 4}
    found = compare_with(bench_report(), now, PATH)
    told = {item["key"]: (item["verdict"], item["reason"]) for item in found["figures"] if item["target"] == "base"}
    assert told["decode_tokens_per_s"] == ("cannot be told", "no spread is known")
    assert told["score.json"] == ("cannot be told", "other rows")
    assert found["measured_otherwise"] == ["threads 1, now 4"]


def test_what_is_absent_on_one_side_cannot_be_told_and_other_targets_are_not_compared() -> None:
    now: dict[str, Any] = copy.deepcopy(bench_report(("base", "new")))
    now["targets"][0]["load_s"] = {"absent": "why"}
    found = compare_with(bench_report(), now, PATH)
    assert {item["target"] for item in found["figures"]} == {"base"}
    assert "energy_j_per_token" not in {item["key"] for item in found["figures"]}
    (load,) = [item for item in found["figures"] if item["key"] == "load_s"]
    assert (load["verdict"], load["reason"], load["now"]) == ("cannot be told", "why", "-")


def test_every_figure_has_its_line() -> None:
    found = compare_with(bench_report(), changed("load_s", 3.0), PATH)
    told = list(lines(found))
    assert told[0].startswith("against old.json: ")
    assert "1 worse" in told[0]
    assert len(told) == 1 + len(found["figures"])
    assert any(line.split()[:4] == ["worse", "base", "load", "time"] for line in told)


@pytest.mark.parametrize("text", ["{", "{}", '{"format": "edgetune-bench", "version": 99}', "[]"])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(RunError, match=r"old\.json"):
        read_before(tmp_path / "old.json")


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(bench_report()))
    assert verdicts(read_before(tmp_path / "old.json"), bench_report())["disk_bytes"] == "agrees"
