"""Real trials on tiny bases: what is scored, and that nothing is left of one for the next."""

from __future__ import annotations

import dataclasses
import gc
import json
import mmap
import os
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
import torch

from edgetune.bundle.export import export
from edgetune.errors import DataError
from edgetune.evaluate.bundle import BundleAnswerer
from edgetune.evaluate.live import score_live
from edgetune.evaluate.score import score
from edgetune.files import read_json
from edgetune.lora.merge import merge
from edgetune.model.base import load_merged
from edgetune.model.heap import lean_heap
from edgetune.model.memory import give_back_memory
from edgetune.process_memory import resident_bytes
from edgetune.recipe import parse_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.tune import trial
from edgetune.tune.folds import cross_validate
from edgetune.tune.search import search
from edgetune.tune.space import recipe_with
from edgetune.tune.study import StudyDir
from edgetune.tune.trial import TrialDir, Workbench

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


@pytest.mark.usefixtures("labels_alone")
def test_an_exported_trial_is_the_bundle_that_export_makes(make_recipe, tmp_path):
    recipe = make_recipe("tune.score_of=exported", "export.repair_steps=8", "export.calibration_rows=16")
    bench = Workbench(recipe, tmp_path)
    found = bench.measure(recipe, tmp_path / "a")
    assert not (tmp_path / "a" / "merged").exists()
    run_dir = RunDir(tmp_path / "a")
    merge(run_dir.adapter, bench.base, run_dir.merged)
    made = export(recipe, run_dir).bundle
    repair = made.provenance["repair"]
    assert (made.provenance["method"], repair["best_step"] > 0) == ("gptq", True)
    expected = score(BundleAnswerer(made.path), bench.rows)[0]
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)
    plain = dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, score_of="deployed"))
    assert found.loss < bench.score(plain, run_dir).loss


def test_without_calibration_and_repair_deployed_and_exported_are_the_same(make_recipe, tmp_path):
    recipe = make_recipe("export.repair_steps=0", "export.calibration_rows=0", "export.method=hqq")
    bench = Workbench(recipe, tmp_path)
    train(recipe, RunDir(tmp_path / "a"))
    losses = {}
    for method in ("hqq", "rtn"):
        for score_of in ("deployed", "exported"):
            changed = recipe_with(recipe, {"export.method": method})
            changed = dataclasses.replace(changed, tune=dataclasses.replace(recipe.tune, score_of=score_of))
            losses[method, score_of] = bench.score(changed, TrialDir(tmp_path / "a", shared_cache=bench.cache)).loss
    assert losses["hqq", "deployed"] == losses["hqq", "exported"] != losses["rtn", "deployed"]
    assert losses["rtn", "deployed"] == losses["rtn", "exported"]


def test_a_trial_of_folds_is_the_mean_of_their_trainings_on_one_base(make_recipe, tmp_path, monkeypatch):
    loads, events = [], []
    load = trial.load_base
    monkeypatch.setattr(trial, "load_base", lambda table: loads.append(table) or load(table))
    recipe = make_recipe("evaluate.folds=2", "tune.score_of=trained")
    found = Workbench(recipe, tmp_path / "bench").measure(recipe, tmp_path / "trial", progress=events.append)
    alone = cross_validate(recipe, RunDir(tmp_path / "alone").create())
    assert found.folds == pytest.approx([fold["loss"] for fold in alone.each])
    assert found.loss == pytest.approx(alone.loss.mean)
    assert (found.score, found.rows, found.steps) == (None, 64, 4)
    assert len(loads) == 1
    steps = [(event["step"], event["steps"]) for event in events if "train_loss" in event]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    tokens = [event["tokens"] for event in events if "train_loss" in event]
    assert tokens == sorted(tokens)
    assert tokens[-1] == found.tokens


def test_folds_that_cannot_be_dealt_are_known_before_the_first_trial(make_recipe, tmp_path):
    with pytest.raises(DataError, match=r"no column 'who', which evaluate\.folds_by names"):
        Workbench(make_recipe("evaluate.folds=2", "evaluate.folds_by=who"), tmp_path)


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


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("score_of", ["deployed", "exported", pytest.param("trained", marks=pytest.mark.slow)])
def test_classifiers_are_searched_too(tiny_encoder, label_rows, tmp_path, score_of):
    text = CLASSIFIER.format(base=tiny_encoder, rows=label_rows)
    recipe = parse_recipe(text, source="test", name="labels", overrides=[f"tune.score_of={score_of}"])
    found = search(recipe, StudyDir(tmp_path)).document
    assert found["metric"] == "accuracy"
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    assert all(0 <= trial["score"] <= 1 for trial in found["trials"])


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_no_tensor_of_a_trial_is_left_for_the_next(make_recipe, tmp_path):
    held = []

    def look(event):
        if str(event.get("message", "")).startswith("trial "):
            held.append(tensor_bytes())

    search(make_recipe("tune.trials=4", "tune.pruner=none"), StudyDir(tmp_path), progress=look)
    assert len(held) == 4
    assert held[1] == held[2] == held[3]


def tensor_bytes():
    """What the tensors that are alive hold, views counted once."""
    gc.collect()
    found = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.device.type == "cpu" and item.layout == torch.strided:
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere freed memory is not given back at once")
@pytest.mark.parametrize("leak_bytes", [0, 256 * 1024])
def test_memory_does_not_grow_over_thirty_trials(make_recipe, tmp_path, leak_bytes):
    """Growth a trial by least squares, against its own standard error: memory that grows by 256 KiB, half of a merged
    model here, is seen; without it there is less than half of that.
    """
    sizes, leaked = [], []
    recipe = make_recipe("tune.trials=30", "tune.pruner=none", "train.max_steps=1", "evaluate.max_rows=4")
    space = {"train.learning_rate": {"low": 1e-4, "high": 0.1, "log": True}, "lora.use_dora": [True, False]}
    recipe = dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, space=space))

    def look(event):
        if str(event.get("message", "")).startswith("trial "):
            leaked.append(mmap.mmap(-1, leak_bytes or mmap.PAGESIZE))  # pages of the system's own, not of a used heap
            leaked[-1].write(b"1" * leak_bytes)
            give_back_memory()
            sizes.append(resident_bytes())

    with lean_heap():
        search(recipe, StudyDir(tmp_path), progress=look)
    assert len(sizes) == 30
    growth, error = slope(sizes[10:])
    if leak_bytes:
        assert growth - 2 * error > leak_bytes / 2
    else:
        assert growth + 2 * error < 128 * 1024


def slope(values):
    """Of a straight line through values at even distances, and its standard error."""
    places = np.arange(len(values)) - (len(values) - 1) / 2
    found = (places * values).sum() / (places**2).sum()
    rest = np.array(values) - np.mean(values) - found * places
    return found, np.sqrt((rest**2).sum() / (len(values) - 2) / (places**2).sum())


@pytest.mark.usefixtures("undrawn")
def test_optuna_can_read_the_file(make_recipe, tmp_path):
    search(make_recipe("tune.trials=2"), StudyDir(tmp_path))
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert study.trials[0].params["lora.r"] == 4
    assert study.best_value == pytest.approx(min(trial.value for trial in study.trials if trial.value))
