"""Cross-validation: each row answered by the model that did not learn it, on one base, going on after a stop."""

from __future__ import annotations

import json
import statistics

import pytest
from click.testing import CliRunner

from edgetune.cli import main
from edgetune.errors import RecipeError
from edgetune.evaluate.compare import compare
from edgetune.files import read_json
from edgetune.recipe import parse_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.tune import folds
from edgetune.tune.folds import cross_validate

LABELS = """
[model]
base = "{base}"
task = "classification"
compute_dtype = "float32"
[data]
train = "{rows}"
eval_fraction = 0.2
[train]
max_steps = 6
[evaluate]
folds = 3
"""


@pytest.fixture
def labels(tiny_encoder, tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [{"text": f"turn {word} lamp {n}", "label": word} for n in range(15) for word in ("on", "off")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_recipe(LABELS.format(base=tiny_encoder, rows=path), source="test", name="labels")


def test_every_row_is_answered_once_by_the_model_that_has_not_seen_it(labels, tmp_path):
    run_dir = RunDir(tmp_path / "run").create()
    found = cross_validate(labels, run_dir)
    answers = [json.loads(line) for line in (run_dir.results / "folds-answers.jsonl").read_text().splitlines()]
    every = sorted(f"turn {word} lamp {n}" for n in range(15) for word in ("on", "off"))
    assert sorted(answer["text"] for answer in answers) == every
    assert sorted(fold["rows"] for fold in found.each) == [10, 10, 10]
    scores = [fold["score"] for fold in found.each]
    by_fold = [statistics.fmean(a["correct"] for a in answers if a["fold"] == number) for number in (1, 2, 3)]
    assert scores == pytest.approx(by_fold)
    assert found.score.mean == pytest.approx(statistics.fmean(scores))
    assert found.score.std == pytest.approx(statistics.stdev(scores))
    assert found.pooled == pytest.approx(statistics.fmean(answer["correct"] for answer in answers))
    assert not run_dir.folds.exists()
    assert (
        compare(run_dir.results / "folds-answers.jsonl", run_dir.results / "folds-answers.jsonl").metric == "accuracy"
    )


def test_a_fold_is_what_the_same_rows_trained_alone_are_and_the_base_is_loaded_once(make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe("evaluate.folds=2")
    kept, loads, measure, load = [], [], folds._measure, folds.load_base

    def alone(fold, run_dir, base, file, progress):
        measure(fold, run_dir, base, file, progress)
        kept.append((read_json(file), train(fold, RunDir(tmp_path / f"alone-{len(kept)}")).eval_loss, run_dir))
        assert read_json(run_dir.results / "train.json")["eval_loss"] == kept[-1][1]

    monkeypatch.setattr(folds, "_measure", alone)
    monkeypatch.setattr(folds, "load_base", lambda table: loads.append(table) or load(table))
    found = cross_validate(recipe, RunDir(tmp_path / "run").create())
    assert (len(kept), len(loads)) == (2, 1)
    assert found.score is None
    assert found.loss.mean == pytest.approx(statistics.fmean(item["loss"] for item, _, _ in kept))
    assert found.summary.startswith(f"loss {found.loss.mean:.4f} ± ")


def test_a_cross_validation_that_was_stopped_goes_on_with_the_fold_that_is_missing(labels, tmp_path, monkeypatch):
    run_dir, done, measure = RunDir(tmp_path / "run").create(), [], folds._measure

    def stop_at_the_third(fold, place, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(place.path.name)
        measure(fold, place, *rest)

    monkeypatch.setattr(folds, "_measure", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(labels, run_dir)
    done.clear()
    found = cross_validate(labels, run_dir)
    assert done == ["fold-3"]
    assert [fold["rows"] for fold in found.each] == [10, 10, 10]
    done.clear()
    cross_validate(labels, run_dir)
    assert done == []


def test_eval_rows_of_the_users_own_stay_out_of_the_folds(make_recipe, tiny_rows, tmp_path):
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text("".join(json.dumps({"question": f"q {n}", "answer": "a"}) + "\n" for n in range(4)))
    renamed = tmp_path / "rows.jsonl"
    rows = [json.loads(line) for line in tiny_rows.read_text().splitlines()]
    renamed.write_text("".join(json.dumps({"question": r["prompt"], "answer": r["completion"]}) + "\n" for r in rows))
    columns = 'data.columns={ prompt = "question", completion = "answer" }'
    recipe = make_recipe("evaluate.folds=2", f'data.train="{renamed}"', f'data.eval="{held_out}"', columns)
    found = cross_validate(recipe, RunDir(tmp_path / "run").create())
    assert sum(fold["rows"] for fold in found.each) == found.rows == len(rows)


def test_several_processes_are_refused(labels, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"evaluate\.folds: several processes"):
        cross_validate(labels, RunDir(tmp_path / "run"))


def test_train_shows_mean_and_spread(labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.toml").write_text(labels.to_toml())
    done = CliRunner().invoke(main, ["train", "labels.toml"])
    assert done.exit_code == 0, done.stderr
    assert "folds       accuracy " in done.stdout
    assert " over 3 folds (" in done.stdout
    again = CliRunner().invoke(main, ["train", "labels.toml", "--json"])
    assert json.loads(again.stdout)["folds"]["folds"] == 3
    broken = CliRunner().invoke(main, ["plan", "labels.toml", "--set", "evaluate.folds_by=who"])
    assert broken.exit_code == 2
    assert broken.stderr.count("\n") == 1
    assert "no column 'who', which evaluate.folds_by names" in broken.stderr
