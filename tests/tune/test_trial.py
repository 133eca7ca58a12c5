"""Real trials on tiny bases: what is scored, and that nothing is left of one for the next."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import optuna
import pytest

from edgetune.evaluate.live import score_live
from edgetune.files import read_json
from edgetune.lora.merge import merge
from edgetune.model.base import load_merged
from edgetune.process_memory import resident_bytes
from edgetune.recipe import parse_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.tune.search import search
from edgetune.tune.study import StudyDir
from edgetune.tune.trial import Workbench

CLASSIFIER = """
[model]
base = "{base}"
task = "classification"
compute_dtype = "float32"
[data]
train = "{rows}"
eval_fraction = 0.3
[train]
max_steps = 2
[tune]
trials = 2
[tune.space]
"lora.r" = [2, 4]
"""


@pytest.fixture(scope="session")
def label_rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "rows.jsonl"
    rows = [{"text": f"turn {word} lamp {n}", "label": word} for n in range(20) for word in ("on", "off")]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_trial_is_scored_on_the_grid_or_as_it_was_trained(make_recipe, tmp_path):
    recipe = make_recipe()
    bench = Workbench(recipe, tmp_path)
    on_grid = bench.measure(recipe, tmp_path / "a")
    as_trained = bench.measure(
        dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, score_of="trained")), tmp_path / "b"
    )
    assert on_grid.score is None
    assert on_grid.eval_loss == as_trained.eval_loss
    # The training's own eval loss is over packed rows of max_seq_len; all eval rows of this data fit.
    assert as_trained.loss == pytest.approx(as_trained.eval_loss, rel=1e-4)
    assert on_grid.loss != pytest.approx(as_trained.loss, rel=1e-6)
    assert on_grid.loss == pytest.approx(as_trained.loss, rel=0.05)


def test_on_a_fine_enough_grid_the_deployed_model_is_the_merged_one(make_recipe, tmp_path):
    recipe = make_recipe("export.precision=fp32")
    bench = Workbench(recipe, tmp_path)
    found = bench.measure(recipe, tmp_path / "a")
    train(recipe, RunDir(tmp_path / "alone"))
    merge(tmp_path / "alone" / "adapter", bench.base, tmp_path / "merged")
    expected = score_live(load_merged(tmp_path / "merged"), bench.tokenizer, bench.rows)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


def test_a_metric_that_needs_answers_is_scored_on_the_grid(make_recipe, tmp_path):
    recipe = make_recipe("evaluate.metric=json", "evaluate.max_rows=4")
    found = Workbench(recipe, tmp_path).measure(recipe, tmp_path / "a")
    assert found.score is not None
    assert (found.rows, 0 <= found.score <= 1) == (4, True)


@pytest.mark.parametrize("score_of", ["deployed", pytest.param("trained", marks=pytest.mark.slow)])
def test_classifiers_are_searched_too(tiny_encoder, label_rows, tmp_path, score_of):
    text = CLASSIFIER.format(base=tiny_encoder, rows=label_rows)
    recipe = parse_recipe(text, source="test", name="labels", overrides=[f"tune.score_of={score_of}"])
    found = search(recipe, StudyDir(tmp_path)).document
    assert found["metric"] == "accuracy"
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    assert all(0 <= trial["score"] <= 1 for trial in found["trials"])


def test_a_trials_adapter_is_that_of_its_recipe_trained_alone(make_recipe, tmp_path):
    found = search(make_recipe("tune.trials=3", "tune.pruner=none"), StudyDir(tmp_path / "study"))
    train(found.recipe, RunDir(tmp_path / "alone"))
    best = found.document["best"]
    assert read_json(tmp_path / "alone" / "results" / "train.json")["eval_loss"] == best["eval_loss"]
    assert not list((tmp_path / "study").glob("trials/*"))


@pytest.mark.slow
def test_a_study_killed_inside_a_trial_goes_on_without_a_duplicate_or_a_zombie(recipe_text, tmp_path):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "study"
    recipe.write_text(recipe_text.replace("max_steps = 2\neval_steps = 1", "max_steps = 20\neval_steps = 4"))
    command = [sys.executable, "-m", "edgetune", "tune", recipe, "-o", out, "--trials", "3", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("trials/trial-00001/checkpoints/step-*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "trial 1 was broken off; it is taken up again" in again.stderr
    found = json.loads(again.stdout)
    states = [trial["state"] for trial in found["trials"]]
    assert states == ["complete", "fail", *states[2:]]
    assert len(states) == 4
    assert set(states[2:]) <= {"complete", "pruned"}
    finished = [json.dumps(trial["values"]) for trial in found["trials"] if trial["state"] != "fail"]
    assert len(set(finished)) == 3
    assert found["trials"][1]["values"] == found["trials"][2]["values"]


@pytest.mark.slow
def test_memory_does_not_grow_over_thirty_trials(make_recipe, tmp_path):
    sizes = []
    recipe = make_recipe("tune.trials=30", "tune.pruner=none", "train.max_steps=1", "evaluate.max_rows=4")
    space = {"train.learning_rate": {"low": 1e-4, "high": 0.1, "log": True}, "lora.use_dora": [True, False]}
    recipe = dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, space=space))

    def look(event):
        if str(event.get("message", "")).startswith("trial "):
            sizes.append(resident_bytes())

    search(recipe, StudyDir(tmp_path), progress=look)
    assert len(sizes) == 30
    early, late = min(sizes[3:10]), min(sizes[23:])
    assert late - early < 8 * 1024**2  # a base or a model on the grid that stayed would be 0.3 MiB each, 20 trials long


def test_optuna_can_read_the_file(make_recipe, tmp_path):
    search(make_recipe("tune.trials=2"), StudyDir(tmp_path))
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.trials[0].params["lora.r"] == 4
    assert study.best_value == pytest.approx(min(trial.value for trial in study.trials if trial.value))
