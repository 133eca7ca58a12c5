"""Targets measured in processes of their own: edgetune/evaluate/evaluate.py and child.py."""

from __future__ import annotations

import json

import pytest

from edgetune.child_process import ask
from edgetune.errors import CheckError, ModelError, OutOfMemoryError
from edgetune.evaluate import evaluate as stage
from edgetune.evaluate.evaluate import Target, evaluate, read_result
from edgetune.recipe import ModelTable


@pytest.fixture(scope="module")
def base(tiny_base):
    table = ModelTable(base=str(tiny_base), quantization="none", compute_dtype="float32")
    return Target("base", "base", tiny_base, table)


def _answers(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_fp32_bundle_scores_as_the_torch_model_it_was_made_from(base, tiny_bundle, eval_file, tmp_path, monkeypatch):
    """The bundle's process is a fresh one, not forked as in other tests: its memory and imports are its own."""
    events = []
    torch_result = evaluate(base, eval_file, tmp_path, progress=events.append)
    monkeypatch.setattr(stage, "ask", ask)
    bundle_result = evaluate(Target("bundle", "bundle", tiny_bundle), eval_file, tmp_path)
    assert bundle_result.score.loss == pytest.approx(torch_result.score.loss, rel=1e-4)  # float32, other kernels
    torch_answers, bundle_answers = (
        _answers(tmp_path / "base-answers.jsonl"),
        _answers(tmp_path / "bundle-answers.jsonl"),
    )
    assert [item["answer"] for item in bundle_answers] == [item["answer"] for item in torch_answers]
    assert len(torch_answers) == torch_result.score.rows == 12
    assert events[-1]["stage"] == "evaluate base"
    assert json.loads((tmp_path / "bundle.json").read_text())["torch_loaded"] is False
    assert bundle_result.peak_bytes < torch_result.peak_bytes
    assert bundle_result.disk_bytes == sum(path.stat().st_size for path in tiny_bundle.iterdir())


def test_a_result_is_the_same_after_its_file(tiny_bundle, eval_file, tmp_path):
    result = evaluate(Target("bundle", "bundle", tiny_bundle), eval_file, tmp_path)
    values = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    assert read_result(values) == result
    assert values["provenance"]["packages"]["onnxruntime"]


def test_an_error_of_the_measuring_process_arrives_as_it_was(base, eval_file, tmp_path):
    missing = Target("tuned", "tuned", tmp_path / "no-adapter", base.model)
    with pytest.raises(ModelError, match="no-adapter"):
        evaluate(missing, eval_file, tmp_path)
    assert not (tmp_path / "tuned.json").exists()


def test_a_bundle_that_renders_a_prompt_otherwise_is_refused(tiny_bundle, changed_file, tmp_path):
    rows = changed_file(messages=({"role": "user", "content": "something else"},))
    with pytest.raises(CheckError, match=r"rows.jsonl:1 differs"):
        evaluate(Target("bundle", "bundle", tiny_bundle), rows, tmp_path)


def test_a_bug_in_the_measuring_process_is_reported_with_its_trace(tiny_bundle, changed_file, tmp_path):
    rows = changed_file(prompt_ids=("x",))
    with pytest.raises(RuntimeError, match="Traceback"):
        evaluate(Target("bundle", "bundle", tiny_bundle), rows, tmp_path)


def test_a_killed_process_is_taken_for_one_out_of_memory(base, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHILD", ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
    with pytest.raises(OutOfMemoryError, match="lack of memory"):
        evaluate(base, tmp_path / "rows.json", tmp_path)
