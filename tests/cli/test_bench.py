"""`edgetune bench`: edgetune/cli/bench.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

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
