"""What a report takes from run folders and measurements, and what it leaves out: edgetune/report/read.py."""

from __future__ import annotations

import json
import shutil

import pytest
from made_run import MIB, STEPS, bench_report, encoder_target, make_label_run, make_run

from edgetune.errors import RunError
from edgetune.report.columns import column, default_axes
from edgetune.report.facts import Number
from edgetune.report.figures import figures_of
from edgetune.report.read import read_report, unique_names
from edgetune.report.samples import MOST_SAMPLES, mark


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "first")


def read_one(run):
    report = read_report([run])
    return report.runs[0], report.problems


def test_a_run_tells_all_that_its_stages_wrote(run):
    found, problems = read_one(run)
    assert problems == ()
    assert [model.stage for model in found.models] == list(STEPS)
    bundle = found.models[-1]
    assert bundle.name == "int4 bundle"
    assert bundle.values["score.json"] == Number(0.78, pytest.approx(0.73), pytest.approx(0.82))
    assert bundle.values["peak_bytes"].value == 83 * MIB
    assert bundle.rows == 40
    assert len(found.curve.training) == 100
    assert found.curve.evaluation[-1] == (100, 0.032)
    assert [step.stage for step in found.ledger] == list(STEPS)
    assert found.passed is True
    assert found.gain_kept == Number(0.975, 0.93, 1.01)
    assert (found.planned.expected_bytes, found.planned.measured_bytes) == (835 * MIB, 900 * MIB)
    assert found.training.values["wall_s"] == Number(130.0)
    assert found.training.values["peak_bytes"] == Number(900 * MIB)
    assert bundle.values["kl"] == Number(0.005)
    assert bundle.values["changed_rows"] == Number(0.025, 0.0, 0.075)
    assert ["changed_rows" in model.values for model in found.models[:-1]] == [False] * 5
    assert sum(item.is_chosen for item in found.search.candidates) == 1
    assert found.base == "edgetune:nano"
    assert found.data == "rows.jsonl"


def test_a_classifiers_labels_and_confusion_are_there(tmp_path):
    found, problems = read_one(make_label_run(tmp_path / "labels"))
    assert problems == ()
    assert found.confusion.labels == ("card", "money", "weather")
    assert found.confusion.counts[1][1] == 12
    assert found.labels[0].f1 == Number(0.9, 0.8, 0.95)
    assert found.models[-1].values["latency_s"].value == 0.004


def test_samples_mark_what_differs_from_the_right_answer(run):
    found, _ = read_one(run)
    assert 0 < len(found.samples) <= MOST_SAMPLES
    wrong = next(shown for sample in found.samples for shown in sample.answers if shown.is_right is False)
    assert [piece.text for piece in wrong.pieces if piece.kind == "added"] == ["turn_off"]
    right = next(shown for sample in found.samples for shown in sample.answers if shown.is_right)
    assert {piece.kind for piece in right.pieces} == {"same"}


@pytest.mark.parametrize(
    ("text", "against", "expected"),
    [
        ("a b c", "a b c", [("a b c", "same")]),
        ("a x c", "a b c", [("a ", "same"), ("x", "added"), ("b", "missing"), (" c", "same")]),
        ("", "a", [("a", "missing")]),
        ("a", "", [("a", "added")]),
    ],
)
def test_pieces_join_to_the_answer(text, against, expected):
    found = [(piece.text, piece.kind) for piece in mark(text, against)]
    assert found == expected
    assert "".join(piece for piece, kind in found if kind != "missing") == text


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("ledger.json", lambda run: run.ledger == ()),
        ("survival.json", lambda run: run.passed is None and run.gain_kept is None),
        ("search.json", lambda run: run.search is None),
        ("summary.json", lambda run: run.planned is None),
        ("train.json", lambda run: set(run.training.values) == {"peak_bytes"}),  # as the summary has it
        ("bundle.json", lambda run: "bundle" not in [model.stage for model in run.models]),
        ("bundle-answers.jsonl", lambda run: all(len(sample.answers) == 2 for sample in run.samples)),
    ],
)
@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', "null", "[" * 100_000, '{"score": 3, "stages": 4}'])
def test_what_is_broken_is_named_and_left_out_and_the_rest_stays(run, name, gone, text):
    (run / "results" / name).write_text(text, encoding="utf-8")
    found, problems = read_one(run)
    assert gone(found)
    if not (name == "survival.json" and text == '{"version": 99}'):  # which claims nothing
        assert any(name in line for line in problems)
    assert [model.stage for model in found.models][:5] == list(STEPS)[:5]


@pytest.mark.parametrize("name", ["ledger.json", "survival.json", "search.json", "base.json", "tuned-answers.jsonl"])
def test_what_a_run_did_not_make_is_no_problem(run, name):
    (run / "results" / name).unlink()
    assert read_one(run)[1] == ()


def test_a_run_that_was_only_trained_says_that_it_is_not_finished(run):
    shutil.rmtree(run / "results")
    found, problems = read_one(run)
    assert found.models == ()
    assert found.curve is not None
    assert len(problems) == 1
    assert "not finished" in problems[0]


def test_a_run_of_an_earlier_version_without_closeness_has_none(run):
    path = run / "results" / "survival.json"
    values = json.loads(path.read_text())
    del values["closeness"]
    path.write_text(json.dumps(values))
    found, problems = read_one(run)
    assert problems == ()
    assert "changed_rows" not in found.models[-1].values


def test_a_number_that_is_none_is_not_there_and_never_a_zero(run):
    path = run / "results" / "bundle.json"
    values = json.loads(path.read_text())
    values["peak_bytes"], values["disk_bytes"], values["speed"] = None, "many", None
    values["score"]["score"] = float("nan")
    path.write_text(json.dumps(values))
    found, _ = read_one(run)
    assert not {"peak_bytes", "disk_bytes", "tokens_per_s", "score.json"} & set(found.models[-1].values)


def test_a_line_that_a_killed_process_left_is_no_problem(run):
    with (run / "events.jsonl").open("a") as file:
        file.write('{"stage": "train", "step": 101, "lo')
    found, problems = read_one(run)
    assert len(found.curve.training) == 100
    assert problems == ()


def test_a_bench_report_gives_its_numbers_and_why_others_are_absent(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(bench_report()))
    report = read_report([tmp_path / "bench.json"])
    base, bundle = report.measurements[0].models
    assert base.values["score.json"] == Number(0.7, 0.6, 0.8)
    assert base.values["peak_bytes.512.cold"].value == 90 * MIB
    assert bundle.values["decode_tokens_per_s"] == Number(1800.0, 1620.0, pytest.approx(1980.0))
    assert base.values["kl_to_reference"].value == 0.01
    assert base.values["same_next_token"].value == 0.98
    assert base.absent["energy_j_per_token"].startswith("no energy counter")
    assert "peak_bytes.512.warm" in base.absent
    assert "context_length" not in base.values
    (training,) = report.measurements[0].trainings
    assert (training.name, training.values["peak_bytes"].value) == ("quick", 700 * MIB)
    assert training.values["step_tokens_per_s"] == Number(1210.0, 1100.0, 1300.0)
    assert training.absent == {"wall_s": "runs/quick/results/train.json: not there"}


@pytest.mark.parametrize("broken", [None, [], {"peak_bytes": 3}, {"run": "x", "peak_bytes": {}}])
def test_a_broken_training_of_a_bench_is_named_and_the_others_stay(tmp_path, broken):
    found = bench_report()
    (tmp_path / "bench.json").write_text(json.dumps({**found, "training": [broken, *found["training"]]}))
    report = read_report([tmp_path / "bench.json"])
    assert [training.name for training in report.measurements[0].trainings] == ["quick"]
    assert "bench.json: training 1" in report.problems[0]


def test_a_bench_report_of_another_version_is_named_and_left_out(run, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps({**bench_report(), "version": 2}))
    report = read_report([run, tmp_path / "bench.json"])
    assert report.measurements == ()
    assert "bench.json" in report.problems[0]
    assert "version 2" in report.problems[0]


def test_of_a_bench_of_encoders_every_figure_has_its_own_name_and_unit(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps({**bench_report(), "targets": [encoder_target("words")]}))
    report = read_report([tmp_path / "bench.json"])
    (model,) = report.models
    assert report.problems == ()
    assert model.rows == 60
    shown = {column(key).title: column(key).form(number.value) for key, number in model.values.items()}
    assert (shown["1 text of 16 tokens"], shown["texts/s, 32 texts of 64 tokens"]) == ("10.0 ms", "3,200")
    assert (shown["peak memory, warm, 32 texts"], shown["accuracy"]) == ("70.0 MiB", "90.0%")
    assert default_axes(report.models) == ("labelling.peak_bytes.1.cold", "score.accuracy")


BROKEN_TARGETS = [
    None,
    3,
    [],
    {},
    {"name": "x", "score": 4},
    {"name": "x", "score": {"value": 1.0}},
    {"score": {"absent": "a"}},
]


@pytest.mark.parametrize("broken", BROKEN_TARGETS)
def test_a_broken_target_of_a_bench_is_named_and_the_others_stay(tmp_path, broken):
    found = bench_report()
    found["targets"].insert(1, broken)
    (tmp_path / "bench.json").write_text(json.dumps(found))
    report = read_report([tmp_path / "bench.json"])
    assert [model.name for model in report.models] == ["base", "bundle"]
    assert "bench.json: target 2" in report.problems[0]


@pytest.mark.parametrize(
    "broken", [None, [], {}, {"target": {"kind": "base"}}, {"target": {"kind": "base", "name": "x"}}]
)
def test_a_broken_result_of_an_evaluation_is_named_and_the_others_stay(run, tmp_path, broken):
    results = [json.loads((run / "results" / f"{stage}.json").read_text()) for stage in ("base", "bundle")]
    (tmp_path / "summary.json").write_text(json.dumps({"results": [results[0], broken, results[1]]}))
    report = read_report([tmp_path / "summary.json"])
    assert [model.name for model in report.models] == ["base", "bundle"]
    assert "summary.json: result 2" in report.problems[0]


def test_what_a_bench_left_out_is_named(tmp_path):
    lost = [{"target": "broken", "reason": "damaged", "exit_code": 2}, "of another version"]
    (tmp_path / "bench.json").write_text(json.dumps({**bench_report(), "left_out": lost}))
    report = read_report([tmp_path / "bench.json"])
    assert report.problems[0] == f"{tmp_path}/bench.json: broken: not measured: damaged"
    assert "left out: damaged, or of another version" in report.problems[1]
    assert len(report.models) == 2


def write_answers(folder, name, answers, prompts=None):
    rows = [
        {"prompt": (prompts or answers)[number], "reference": "right", "answer": text, "correct": text == "right"}
        for number, text in enumerate(answers)
    ]
    (folder / "bench-answers" / name).mkdir(parents=True)
    path = folder / "bench-answers" / name / f"{name}-answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_answers_beside_a_bench_are_shown_side_by_side(tmp_path):
    found = bench_report()
    for target in found["targets"]:
        target["answers"] = f"bench-answers/{target['name']}/{target['name']}-answers.jsonl"
    (tmp_path / "bench.json").write_text(json.dumps(found))
    questions = [f"question {number}" for number in range(20)]
    write_answers(tmp_path, "base", ["right"] * 20, questions)
    write_answers(tmp_path, "bundle", ["right"] * 19 + ["wrong"], questions)
    report = read_report([tmp_path / "bench.json"])
    samples = report.measurements[0].samples
    assert report.problems == ()
    assert len(samples) == MOST_SAMPLES
    assert samples[-1].question == "question 19"
    assert [(shown.stage, shown.is_right) for shown in samples[-1].answers] == [("base", True), ("bundle", False)]
    assert [shown.is_as_tuned for shown in samples[-1].answers] == [None, None]


def test_answers_that_are_gone_or_to_other_rows_are_named(tmp_path):
    found = bench_report(("a", "b", "c"))
    for target in found["targets"]:
        target["answers"] = f"bench-answers/{target['name']}/{target['name']}-answers.jsonl"
    (tmp_path / "bench.json").write_text(json.dumps(found))
    write_answers(tmp_path, "a", ["right"] * 3, ["x", "y", "z"])
    write_answers(tmp_path, "b", ["right"] * 3, ["x", "y", "other"])
    report = read_report([tmp_path / "bench.json"])
    assert [shown.stage for shown in report.measurements[0].samples[0].answers] == ["a"]
    assert "c-answers.jsonl: no such file" in report.problems[0]
    assert "b-answers.jsonl: answers other rows than a" in report.problems[1]


def test_a_folder_of_evaluate_is_a_measurement(run, tmp_path):
    results = [json.loads((run / "results" / f"{stage}.json").read_text()) for stage in ("base", "bundle")]
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"results": results, "source": "other.jsonl"}))
    found = read_report([folder]).measurements[0]
    assert (found.data, [model.name for model in found.models]) == ("other.jsonl", ["base", "bundle"])


def test_what_cannot_be_read_does_not_stop_the_rest(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no JSON")
    report = read_report([tmp_path / "nothing", tmp_path / "empty", tmp_path / "text.json", run])
    assert [item.name for item in report.runs] == ["first"]
    assert len(report.problems) == 3


def test_nothing_to_report_is_an_error_with_a_cure(tmp_path):
    with pytest.raises(RunError, match=r"nothing to report.*nothing: no such file.*give run folders"):
        read_report([tmp_path / "nothing"])


def test_names_are_as_long_as_tells_them_apart(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other", tmp_path / "other"]
    assert unique_names(paths)[:2] == ["a/run", "b/run"]
    assert unique_names(paths)[2].endswith("other")
    assert unique_names(paths)[3].endswith("other (2)")


def test_flattening_keeps_quantities_and_reasons():
    values = {
        "peak_bytes": {"512": {"cold": {"median": 2, "least": 1, "most": 3}, "warm": {"absent": "why"}}},
        "disk_bytes": 1,
        "load_s": None,
        "weights": {"body": 5},
    }
    assert figures_of(values) == {
        "peak_bytes.512.cold": {"median": 2, "least": 1, "most": 3},
        "peak_bytes.512.warm": {"absent": "why"},
        "disk_bytes": {"value": 1},
    }
