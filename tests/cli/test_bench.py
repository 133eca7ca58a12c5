"""`edgetune bench`: edgetune/cli/bench.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_run import bench_report

from edgetune.cli import main


def test_bench_prints_one_document_and_keeps_it(tiny_bundle: Path, tiny_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept" / "bench.json"
    arguments = ["bench", str(tiny_bundle), "--data", str(tiny_rows), "--max-rows", "4", "--task", "loss"]
    done = CliRunner().invoke(main, [*arguments, "--repeats", "1", "--threads", "1", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads(out.read_text(encoding="utf-8")) == report
    (target,) = report["targets"]
    assert target["score"] == {"absent": "the metric is the loss"}
    assert target["loss"]["value"] > 0
    assert str(out) in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no-such-folder"], 2, "no such folder"),
        (["BUNDLE", "--threads", "100000"], 3, "lower --threads"),
        (["BUNDLE", "--data", "absent.jsonl"], 2, "absent.jsonl"),
        (["BUNDLE", "--reference", "x"], 2, "--data"),
        ([], 2, "TARGET"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], code: int, said: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["bench", *(item.replace("BUNDLE", str(tiny_bundle)) for item in arguments)])
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the bench finds: a report that a test may change."""
    found: dict[str, Any] = bench_report()
    monkeypatch.setattr("edgetune.bench.bench.bench", lambda *_, **__: found)
    return found


def test_targets_that_were_left_out_are_named_and_decide_the_exit_code(
    measured: dict[str, Any], tmp_path: Path
) -> None:
    measured["left_out"] = [{"target": "torn", "reason": "damaged", "exit_code": 2}]
    measured["left_out"] += [{"target": "large", "reason": "memory ran out", "exit_code": 4}]
    done = CliRunner().invoke(main, ["bench", "torn", "base", "--out", str(tmp_path / "bench.json")])
    assert done.exit_code == 2
    assert "left out: torn: damaged\nleft out: large: memory ran out" in done.stdout
    assert done.stderr.splitlines()[-1] == "edgetune: left out, as they could not be measured: torn, large"
    assert json.loads((tmp_path / "bench.json").read_text())["left_out"] == measured["left_out"]


@pytest.mark.parametrize("text", [None, "[]", "{}"])
def test_an_earlier_report_that_is_none_is_told_before_anything_is_measured(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.bench.bench.bench", lambda *_, **__: pytest.fail("measured"))
    old = tmp_path / "old.json"
    if text is not None:
        old.write_text(text)
    done = CliRunner().invoke(main, ["bench", "base", "--against", str(old), "--out", str(tmp_path / "new.json")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "old.json: " in done.stderr
    assert "give a file that `edgetune bench --out` wrote" in done.stderr
    assert not (tmp_path / "new.json").exists()


def test_a_figure_that_is_worse_than_before_is_exit_code_5(measured: dict[str, Any], tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(measured))
    arguments = ["bench", "base", "--against", str(old)]
    done = CliRunner().invoke(main, arguments)
    worse = re.compile(r"^worse +base +decode tokens/s ", re.MULTILINE)
    assert (done.exit_code, worse.search(done.stdout)) == (0, None), done.output
    for key in ("median", "least", "most"):
        measured["targets"][0]["decode_tokens_per_s"][key] /= 3
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 5
    assert f"against {old}: " in done.stdout
    assert worse.search(done.stdout)
    assert done.stderr.splitlines()[-1] == f"edgetune: 1 figures are worse than in {old}"
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert json.loads(done.stdout)["against"]["counts"]["worse"] == 1
    done = CliRunner().invoke(main, ["bench", "base", "--against", str(tmp_path / "absent.json")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "absent.json: no such file" in done.stderr
