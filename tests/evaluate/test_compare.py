"""Saved answers of two targets, row by row: edgetune/evaluate/compare.py and answers.py."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from edgetune.errors import RunError
from edgetune.evaluate.compare import compare, to_json
from edgetune.evaluate.metrics import count_fields, score_fields
from edgetune.evaluate.resample import Bootstrap
from edgetune.run_dir import RunDir

LABELS = ("card", "money", "weather", "other")


def write(folder: Path, name: str, rows, *, metric=None, settings=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if metric:
        (folder / f"{name}.json").write_text(json.dumps({"score": {"metric": metric}}), encoding="utf-8")
    if settings:
        (folder / "rows.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def written(answer, reference="yes", prompt="p", *, loss=1.0, tokens=4, place="rows.jsonl:1"):
    return {
        "prompt": prompt,
        "reference": reference,
        "answer": answer,
        "correct": answer == reference,
        "loss": loss,
        "loss_sum": loss * tokens,
        "trained_tokens": tokens,
        "place": place,
    }


def labelled(answer, label="card", text="t"):
    return {"text": text, "labels": [label], "answer": [answer], "correct": answer == label, "place": "rows.csv:1"}


def written_pair(tmp_path, both=10, only_a=2, only_b=14, neither=5, **values):
    outcomes = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    for side, name in enumerate("ab"):
        rows = [
            written("yes" if outcome[side] else "no", prompt=f"p{number}", **values)
            for number, outcome in enumerate(outcomes)
        ]
        write(tmp_path / name, "bundle", rows, metric="exact_match")
    return tmp_path / "a", tmp_path / "b"


def test_mcnemar_decides_where_each_row_is_right_or_wrong(tmp_path):
    found = compare(*written_pair(tmp_path))
    assert (found.metric, found.test, found.better) == ("exact_match", "mcnemar_exact", "b")
    assert (found.only_a, found.only_b, found.rows) == (2, 14, 31)
    assert found.p_value == pytest.approx(2 * (1 + 16 + 120) / 2**16)
    assert found.difference == pytest.approx(12 / 31)
    assert found.interval[0] < 12 / 31 < found.interval[1]
    assert [item.question for item in found.differing] == [f"p{number}" for number in range(10, 26)]


def test_a_is_better_when_it_is(tmp_path):
    assert compare(*reversed(written_pair(tmp_path))).better == "a"


def test_few_rows_tell_nothing(tmp_path):
    assert compare(*written_pair(tmp_path, only_a=1, only_b=4)).better is None


def test_more_confidence_asks_for_more(tmp_path):
    assert compare(*written_pair(tmp_path), confidence=0.999).better is None


def test_a_loss_is_compared_by_the_bootstrap_and_less_is_better(tmp_path):
    generator = np.random.default_rng(0)
    hard = generator.random(60)
    for name, shift in (("a", 0.0), ("b", -0.1)):
        rows = [
            written("no", prompt=str(i), loss=float(hard[i] + shift + 0.1 * generator.random()), tokens=i + 1)
            for i in range(60)
        ]
        write(tmp_path / name, "base", rows)
    found = compare(tmp_path / "a", tmp_path / "b", metric="loss")
    assert (found.test, found.better, found.loss_per) == ("paired_bootstrap", "b", "token")
    assert found.interval[0] < found.difference < found.interval[1] < 0
    sizes = [abs(item.b_value - item.a_value) for item in found.differing]
    assert sizes == sorted(sizes, reverse=True)


def test_losses_by_other_tokenizers_are_compared_by_the_row(tmp_path):
    write(tmp_path / "a", "base", [written("no", prompt=str(i), loss=1.0, tokens=4) for i in range(9)])
    write(tmp_path / "b", "base", [written("no", prompt=str(i), loss=1.5, tokens=2) for i in range(9)])
    found = compare(tmp_path / "a", tmp_path / "b", metric="loss")
    assert (found.loss_per, found.a_score, found.b_score, found.better) == ("row", 4.0, 3.0, "b")


def test_the_f1_of_fields_is_that_of_the_table(tmp_path):
    answers = ['{"a": 1, "b": 2}', '{"a": 1}', "no JSON", '{"a": 3, "c": 4}']
    rows = [written(text, '{"a": 1, "b": 2}', prompt=str(i)) for i, text in enumerate(answers)]
    write(tmp_path / "a", "base", rows)
    write(tmp_path / "b", "base", [written('{"a": 1, "b": 2}', '{"a": 1, "b": 2}', prompt=str(i)) for i in range(4)])
    found = compare(tmp_path / "a", tmp_path / "b", metric="fields")
    expected = score_fields([count_fields(text, '{"a": 1, "b": 2}') for text in answers], bootstrap=Bootstrap(1))
    assert (found.a_score, found.b_score) == (pytest.approx(expected.f1), 1.0)


def label_pair(tmp_path, metric, settings):
    generator = np.random.default_rng(0)
    truth = [LABELS[number] for number in generator.integers(0, 4, 200)]
    chosen = {}
    for name, skill in (("a", 0.5), ("b", 0.8)):
        chosen[name] = [label if generator.random() < skill else LABELS[generator.integers(0, 4)] for label in truth]
        rows = [labelled(one, right, f"t{i}") for i, (one, right) in enumerate(zip(chosen[name], truth, strict=True))]
        write(tmp_path / name, "bundle", rows, metric=metric, settings=settings)
    return truth, chosen


@pytest.mark.parametrize(("metric", "average"), [("macro_f1", "macro"), ("f1", "binary"), ("accuracy", "micro")])
def test_scores_of_labels_are_scikit_learns(tmp_path, metric, average):
    settings = {"positive_label": "money", "out_of_scope_label": None}
    truth, chosen = label_pair(tmp_path, metric, settings)
    found = compare(tmp_path / "a", tmp_path / "b")
    only = {"labels": ["money"], "average": "macro"} if average == "binary" else {"average": average}
    assert found.metric == metric
    assert found.a_score == pytest.approx(f1_score(truth, chosen["a"], **only))
    assert found.b_score == pytest.approx(f1_score(truth, chosen["b"], **only))
    assert found.better == "b"
    assert found.test == ("mcnemar_exact" if metric == "accuracy" else "paired_bootstrap")


def test_rows_out_of_scope_count_in_no_score(tmp_path):
    truth, chosen = label_pair(tmp_path, "accuracy", {"positive_label": None, "out_of_scope_label": "other"})
    found = compare(tmp_path / "a", tmp_path / "b")
    inside = [pair for pair in zip(truth, chosen["a"], strict=True) if pair[0] != "other"]
    assert (found.rows, found.left_out) == (len(inside), 200 - len(inside))
    assert found.a_score == pytest.approx(np.mean([right == one for right, one in inside]))


def test_any_number_in_the_answers_can_be_the_metric(tmp_path):
    for name, gain in (("a", 0.0), ("b", 0.3)):
        rows = [{**written("x", prompt=str(i)), "rouge_l": i / 40 + gain} for i in range(20)]
        write(tmp_path / name, "bundle", rows)
    found = compare(tmp_path / "a", tmp_path / "b", metric="rouge_l")
    assert (found.better, found.difference) == ("b", pytest.approx(0.3))


def test_rows_in_another_order_and_twice_are_matched(tmp_path):
    rows = [written("yes", prompt=prompt) for prompt in ("p", "q", "p")]
    write(tmp_path / "a", "bundle", rows)
    write(tmp_path / "b", "bundle", [written("no", prompt="p"), rows[0], rows[1]])
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [(item.question, item.b) for item in found.differing] == [("p", "no")]


def test_plain_text_is_matched_by_its_place(tmp_path):
    for name, numbers in (("a", (1, 2)), ("b", (2, 1))):
        rows = [written(None, None, "", loss=number, place=f"/data/{name}/rows.txt:{number}") for number in numbers]
        write(tmp_path / name, "bundle", rows)
    assert compare(tmp_path / "a", tmp_path / "b").differing == ()


def test_other_rows_are_refused_with_a_cure(tmp_path):
    write(tmp_path / "a", "bundle", [written("yes", prompt=str(i)) for i in range(3)])
    write(tmp_path / "b", "bundle", [written("yes", prompt=str(i)) for i in range(1, 6)])
    with pytest.raises(RunError, match=r"3 rows and .* 5, of which 2 are the same.*edgetune evaluate"):
        compare(tmp_path / "a", tmp_path / "b")


def test_another_right_answer_is_another_row(tmp_path):
    write(tmp_path / "a", "bundle", [written("yes")])
    write(tmp_path / "b", "bundle", [written("yes", reference="no")])
    with pytest.raises(RunError, match="0 are the same"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_classifier_is_not_compared_with_a_writer(tmp_path):
    with pytest.raises(RunError, match=r"labels texts and .* writes them"):
        compare(write(tmp_path / "a", "x", [labelled("card")]), write(tmp_path / "b", "x", [written("yes")]))


@pytest.mark.parametrize("metric", ["rouge_l", "accuracy_", "json"])
def test_a_metric_that_the_answers_do_not_have_is_named_with_those_they_have(tmp_path, metric):
    write(tmp_path / "a", "bundle", [written(None)])
    with pytest.raises(RunError, match=rf"compared by {metric}.*--metric: exact_match.*loss_sum"):
        compare(tmp_path / "a", tmp_path / "a", metric=metric)


def test_a_run_its_folders_and_its_results_name_their_answers(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    for name in ("base", "tuned", "merged", "bundle"):
        write(run_dir.results, name, [written("yes")], metric="exact_match")
    for folder in (run_dir.adapter, run_dir.merged, run_dir.bundle):
        folder.mkdir()
    run_dir.recipe.touch()
    run_dir.run_json.write_text("{}")
    for path, name in (
        (run_dir.path, "bundle"),
        (run_dir.adapter, "tuned"),
        (run_dir.merged, "merged"),
        (run_dir.bundle, "bundle"),
        (run_dir.results / "base.json", "base"),
        (run_dir.results / "base-answers.jsonl", "base"),
    ):
        assert compare(path, path).a.path == run_dir.results / f"{name}-answers.jsonl"
    (run_dir.results / "tuned-answers.jsonl").unlink()
    with pytest.raises(RunError, match=r"adapter: has no saved answers.*edgetune evaluate"):
        compare(run_dir.adapter, run_dir.path)
    with pytest.raises(RunError, match=r"answers of several targets.*merged-answers"):
        compare(run_dir.results, run_dir.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no answers"),
        ("{", "answers.jsonl:1: is no JSON"),
        ("[1]", "answers.jsonl:1: is no answer"),
        ('{"answer": "a"}', "answers.jsonl:1: is no answer"),
        ("[" * 100_000, "answers.jsonl:1: is no JSON"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, text, message):
    (tmp_path / "x-answers.jsonl").write_text(text)
    with pytest.raises(RunError, match=message):
        compare(tmp_path, tmp_path)


def test_a_missing_path_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"no such file or folder.*give a run folder"):
        compare(tmp_path / "nothing", tmp_path)


def test_the_json_values_are_plain_and_whole(tmp_path):
    values = json.loads(json.dumps(to_json(compare(*written_pair(tmp_path)))))
    assert values["a"]["score"] == pytest.approx(12 / 31)
    assert values["better"] == "b"
    assert len(values["differing"]) == 16
    assert math.isfinite(values["p_value"])
