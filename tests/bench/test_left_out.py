"""Targets that cannot be measured: edgetune/bench/left_out.py, and what a bench makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgetune.bench.bench import bench
from edgetune.bench.left_out import LeftOut
from edgetune.bench.settings import Settings
from edgetune.errors import BundleError, ModelError, RunError, Stopped
from edgetune.evaluate.compare import compare
from edgetune.report.read import read_report

FAST = Settings(1, repeats=1, passes=1, prompts=(8,), decode_prompt=8, decode_new=4, contexts=())


def test_an_error_is_kept_with_its_reason_and_exit_code_and_a_stop_is_none() -> None:
    def fail(error: Exception) -> None:
        raise error

    left_out = LeftOut()
    assert left_out.attempt("good", lambda: 3) == 3
    left_out.attempt("a", lambda: fail(BundleError("damaged", cure="again")))
    left_out.attempt("a", lambda: fail(BundleError("later")))
    left_out.attempt("b", lambda: fail(RuntimeError("measuring b ended with code 1\nTrace\nKeyError: 'x'\n")))
    assert left_out.told == [
        {"target": "a", "reason": "damaged; again", "exit_code": 2},
        {"target": "b", "reason": "measuring b ended with code 1: KeyError: 'x'", "exit_code": 1},
    ]
    left_out.refuse_if_all(1)
    with pytest.raises(BundleError, match="damaged"):
        left_out.refuse_if_all(0)
    with pytest.raises(Stopped):
        left_out.attempt("c", lambda: fail(Stopped("stopped", signal_number=2)))


def test_targets_that_fail_are_named_and_the_others_are_measured_with_their_answers(
    tiny_bundle: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    for name in ("torn", "one", "two"):
        shutil.copytree(tiny_bundle, tmp_path / name)
    graph = bytearray((tmp_path / "torn" / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1  # seen when it is loaded
    (tmp_path / "torn" / "model.onnx").write_bytes(graph)
    paths = [str(tmp_path / name) for name in ("absent", "torn", "one", "two")]
    overrides = [f'data.test="{tiny_rows}"', "evaluate.max_rows=4", "evaluate.max_new_tokens=4"]
    kept = tmp_path / "bench-answers"
    report = bench(paths, FAST, overrides=overrides, answers=kept, progress=lambda _: None)
    assert [(item["target"], item["exit_code"]) for item in report["left_out"]] == [(paths[0], 2), ("torn", 2)]
    assert "no such folder" in report["left_out"][0]["reason"]
    assert "torn" in report["left_out"][1]["reason"]
    assert [target["name"] for target in report["targets"]] == ["one", "two"]
    assert report["reference"] == "one"
    assert all(target["decode_tokens_per_s"]["median"] > 0 for target in report["targets"])
    assert sorted(folder.name for folder in kept.iterdir()) == ["one", "two"]
    assert [target["answers"] for target in report["targets"]] == [
        f"bench-answers/{name}/{name}-answers.jsonl" for name in ("one", "two")
    ]
    same = compare(kept / "one", kept / "two")
    assert (same.metric, same.rows, same.differing) == ("exact_match", 4, ())
    (tmp_path / "bench.json").write_text(json.dumps(report))
    shown = read_report([tmp_path / "bench.json"])
    assert [answer.stage for answer in shown.measurements[0].samples[0].answers] == ["one", "two"]
    assert len(shown.problems) == 2


def test_where_no_target_is_left_the_first_reason_is_raised_and_nothing_is_kept(
    tiny_bundle: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "torn")
    (tmp_path / "torn" / "model.onnx").write_bytes(b"torn")
    paths, overrides = [str(tmp_path / "torn"), str(tmp_path / "absent")], [f'data.test="{tiny_rows}"']
    with pytest.raises((BundleError, ModelError), match="absent"):
        bench(paths[::-1], FAST, overrides=overrides, answers=tmp_path / "kept", progress=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["torn"]


def test_answers_take_the_place_of_nothing_but_answers(tiny_bundle: Path, tiny_rows: Path, tmp_path: Path) -> None:
    kept = tmp_path / "bench-answers"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    overrides = [f'data.test="{tiny_rows}"']
    with pytest.raises(RunError, match="is no folder of a bench's answers"):
        bench([str(tiny_bundle)], FAST, overrides=overrides, answers=kept, progress=lambda _: None)
    assert (kept / "mine.txt").read_text() == "mine"
