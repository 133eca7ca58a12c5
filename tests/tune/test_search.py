"""The search itself, on trainings that cost nothing: budgets, pruning, the same trials again, and ends of all kinds."""

from __future__ import annotations

import dataclasses
import warnings

import optuna
import pytest
from tune_bench import PaperBench

from edgetune.errors import DivergedError, OutOfMemoryError, RunError, Stopped
from edgetune.files import read_json
from edgetune.recipe import load_recipe
from edgetune.tune import storage
from edgetune.tune.search import search
from edgetune.tune.study import StudyDir

pytestmark = pytest.mark.usefixtures("undrawn")
LR = "train.learning_rate"
RANGE = {LR: {"low": 1e-4, "high": 1.0, "log": True}, "lora.dropout": {"low": 0.0, "high": 0.5}}


def trials_of(result):
    return [(trial["state"], trial["values"], trial["objectives"]) for trial in result.document["trials"]]


@pytest.fixture
def folder(tmp_path):
    return StudyDir(tmp_path / "study")


@pytest.mark.usefixtures("paper_bench")
def test_the_best_values_are_found_and_written_as_a_recipe(make_recipe, folder):
    result = search(make_recipe("tune.trials=8", "tune.pruner=none"), folder)
    losses = [trial["loss"] for trial in result.document["trials"]]
    assert len(losses) == 8
    assert result.document["best"]["loss"] == min(losses)
    assert load_recipe(folder.best).train.learning_rate == result.values[LR]
    assert read_json(folder.results) == dict(result.document)
    assert not folder.trials.exists()


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        ("random", "none"),
        ("tpe", "halving"),
        pytest.param("tpe", "hyperband", marks=pytest.mark.slow),
        pytest.param("gp", "none", marks=pytest.mark.slow),
        pytest.param("cmaes", "none", marks=pytest.mark.slow),
    ],
)
def test_the_same_seed_gives_the_same_trials_also_after_a_stop(make_recipe, paper_bench, tmp_path, sampler, pruner):
    recipe = make_recipe(f"tune.sampler={sampler}", f"tune.pruner={pruner}", "tune.trials=9", space=RANGE)
    whole = search(recipe, StudyDir(tmp_path / "whole"))
    calls = iter(range(100))
    broken = StudyDir(tmp_path / "broken")

    def stop(_):
        if next(calls) == 7:
            raise Stopped("stopped", signal_number=2)

    paper_bench.before = stop
    with pytest.raises(Stopped):
        search(recipe, broken)
    resumed = search(recipe, broken)
    if pruner == "hyperband" or sampler == "cmaes":  # they go by a trial's number, and one number was lost
        assert [trial[1] for trial in trials_of(resumed)][:7] == [trial[1] for trial in trials_of(whole)][:7]
    else:
        assert [trial for trial in trials_of(resumed) if trial[0] != "fail"] == trials_of(whole)
    other = search(
        make_recipe(f"tune.sampler={sampler}", "tune.seed=1", "tune.trials=4", space=RANGE), StudyDir(tmp_path / "o")
    )
    assert trials_of(other)[1:] != trials_of(whole)[1:4]


def test_a_trial_that_is_broken_off_is_taken_up_with_the_same_values(make_recipe, paper_bench, folder):
    def stop(_):
        if len(paper_bench.seen) == 2:
            raise KeyboardInterrupt

    paper_bench.before = stop
    recipe = make_recipe("tune.trials=3")
    with pytest.raises(KeyboardInterrupt):
        search(recipe, folder)
    result = search(recipe, folder)
    states = [trial["state"] for trial in result.document["trials"]]
    assert states == ["complete", "fail", "complete", "complete"]
    assert result.document["trials"][1]["values"] == result.document["trials"][2]["values"]


@pytest.mark.usefixtures("paper_bench")
def test_a_trial_of_a_dead_process_is_taken_up_at_once_and_of_another_machine_when_it_is_silent(
    make_recipe, folder, monkeypatch
):
    recipe = make_recipe("tune.trials=4", "tune.pruner=none")
    search(make_recipe("tune.trials=1"), folder)
    study = optuna.load_study(study_name="tiny", storage=storage.open_storage(storage.file_url(folder.database)))
    warnings.simplefilter("ignore")  # of asking without the thread that gives signs of life: that is the point
    for worker in (f"{storage.socket.gethostname()}:999999999:1.00", "another-machine:1:1.00"):
        trial = study.ask()
        trial.suggest_float(LR, 1e-4, 0.1, log=True)
        trial.suggest_categorical("lora.r", [2, 4, 8])
        trial.set_user_attr("worker", worker)
        study._storage.record_heartbeat(trial._trial_id)
    monkeypatch.setattr(storage, "HEARTBEAT_S", 1)
    monkeypatch.setattr(storage, "GRACE_S", 2)
    monkeypatch.setattr("edgetune.tune.run.POLL_S", 0.2)
    said = []
    result = search(recipe, folder, progress=lambda event: said.append(event.get("message", "")))
    states = [trial["state"] for trial in result.document["trials"]]
    assert states[:3] == ["complete", "fail", "fail"]
    assert sorted(states[3:]) == ["complete"] * 3
    assert "trial 1 was broken off; it is taken up again" in said
    values = [trial["values"] for trial in result.document["trials"]]
    assert values[1] in values[3:]
    assert values[2] in values[3:]


def test_a_trial_that_kills_its_process_every_time_does_not_hold_the_study_up(make_recipe, paper_bench, folder):
    paper_bench.before = lambda recipe: (_ for _ in ()).throw(SystemError) if recipe.lora.r == 8 else None
    recipe = make_recipe("tune.trials=2", space={"lora.r": [4, 8]})
    for _ in range(storage.MOST_RETRIES + 1):
        with pytest.raises(SystemError):
            search(make_recipe("tune.trials=2", "tune.sampler=grid", space={"lora.r": [4, 8]}), folder)
    paper_bench.before = lambda _: None
    states = [trial["state"] for trial in search(recipe, folder).document["trials"]]
    assert states.count("fail") == storage.MOST_RETRIES + 1
    assert states.count("complete") == 2


def test_a_finished_study_trains_nothing_more_and_a_larger_budget_goes_on(make_recipe, paper_bench, folder):
    search(make_recipe("tune.trials=3", space=RANGE), folder)
    first = list(paper_bench.seen)
    search(make_recipe("tune.trials=3", space=RANGE), folder)
    assert paper_bench.seen == first
    search(make_recipe("tune.trials=5", space=RANGE), folder)
    assert len(paper_bench.seen) == 5


@pytest.mark.parametrize(("budget", "trials"), [("tune.tokens=250", 3), ("tune.minutes=0.04", 3)])
@pytest.mark.usefixtures("paper_bench")
def test_a_budget_in_tokens_or_minutes_ends_the_study(make_recipe, folder, budget, trials):
    result = search(make_recipe("tune.trials=50", "tune.pruner=none", budget, space=RANGE), folder)
    assert len(result.document["trials"]) == trials


@pytest.mark.usefixtures("paper_bench")
def test_a_study_of_another_recipe_is_refused_and_force_begins_anew(make_recipe, folder):
    search(make_recipe("tune.trials=2"), folder)
    with pytest.raises(RunError, match=r"train\.max_steps is 2 there, 3 here"):
        search(make_recipe("tune.trials=2", "train.max_steps=3"), folder)
    search(make_recipe("tune.trials=2", "train.learning_rate=0.5", "lora.r=8"), folder)  # the study sets these itself
    assert len(search(make_recipe("tune.trials=2", "train.max_steps=3"), folder, force=True).document["trials"]) == 2


def test_a_study_begins_with_the_recipes_own_values(make_recipe, paper_bench, folder):
    search(make_recipe("tune.trials=2"), folder)
    assert (paper_bench.seen[0].train.learning_rate, paper_bench.seen[0].lora.r) == (0.01, 4)
    search(make_recipe("tune.trials=2", "tune.warm_start=false"), folder, force=True)
    assert paper_bench.seen[2].train.learning_rate != 0.01


def test_a_study_begins_with_what_was_best_for_the_same_base_before(make_recipe, paper_bench, tmp_path):
    before = search(
        make_recipe("tune.trials=6", "tune.pruner=none", "train.learning_rate=0.09"), StudyDir(tmp_path / "a")
    )
    paper_bench.seen.clear()
    search(make_recipe("tune.trials=2", "train.max_steps=3", "train.learning_rate=0.09"), StudyDir(tmp_path / "b"))
    assert paper_bench.seen[1].train.learning_rate == before.values[LR]
    paper_bench.base_sha256 = "another"
    paper_bench.seen.clear()
    search(make_recipe("tune.trials=2", "train.max_steps=4", "train.learning_rate=0.09"), StudyDir(tmp_path / "c"))
    assert paper_bench.seen[1].train.learning_rate != before.values[LR]


def test_what_cannot_fit_is_not_trained(make_recipe, paper_bench, folder):
    paper_bench.room = 5 * 1024**3
    result = search(make_recipe("tune.sampler=grid", space={"lora.r": [4, 8, 2]}), folder)
    assert sorted(recipe.lora.r for recipe in paper_bench.seen) == [2, 4]
    refused = next(trial for trial in result.document["trials"] if trial["values"] == {"lora.r": 8})
    assert refused["state"] == "pruned"
    assert refused["reason"] == "cannot fit: needs 8,192 MiB, 5,120 MiB are there"


def test_where_nothing_fits_the_study_says_so(make_recipe, paper_bench, folder):
    paper_bench.room = 1
    with pytest.raises(OutOfMemoryError, match="none of 2 trials was measured; the last: cannot fit"):
        search(make_recipe("tune.trials=2"), folder)


def test_a_training_that_diverges_or_runs_out_of_memory_is_a_trial_given_up(make_recipe, paper_bench, folder):
    def fail(recipe):
        if recipe.lora.r == 8:
            raise DivergedError("step 3: the loss is nan")
        if recipe.lora.r == 4:
            raise OutOfMemoryError("no")

    paper_bench.before = fail
    result = search(make_recipe("tune.sampler=grid", space={"lora.r": [4, 8, 2]}), folder)
    reasons = {trial["values"]["lora.r"]: trial.get("reason") for trial in result.document["trials"]}
    assert reasons == {8: "diverged: step 3: the loss is nan", 4: "memory ran out", 2: None}
    assert result.values == {"lora.r": 2}


@pytest.mark.usefixtures("paper_bench")
def test_values_that_do_not_go_together_are_a_trial_given_up(make_recipe, folder):
    space = {"export.precision": ["int4", "int2"], "export.accuracy_level": [4, 0]}
    result = search(make_recipe("tune.sampler=grid", space=space), folder)
    reasons = [trial["reason"] for trial in result.document["trials"] if trial["state"] == "pruned"]
    assert len(reasons) == 1
    assert reasons[0].startswith("the recipe refuses it")


@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
@pytest.mark.usefixtures("paper_bench")
def test_a_trial_that_does_badly_is_given_up_and_its_cost_counted(make_recipe, folder, pruner):
    rates = [0.01, 0.011, 0.012, 1.0, 0.9, 0.8, 0.7, 0.6]
    result = search(
        make_recipe(f"tune.pruner={pruner}", "tune.sampler=grid", "tune.trials=8", space={LR: rates}), folder
    )
    given_up = [trial for trial in result.document["trials"] if trial["state"] == "pruned"]
    assert given_up
    assert all(0 < trial["tokens"] < 100 for trial in given_up)
    assert all("eval loss" in trial["reason"] for trial in given_up)
    assert result.document["best"]["state"] == "complete"


class ScoreBench(PaperBench):
    """A workbench of a metric of which more is better: 1 at a learning rate of 0.01."""

    def measure(self, recipe, folder, *, progress):
        measured = super().measure(recipe, folder, progress=progress)
        return dataclasses.replace(measured, score=1 / (1 + measured.loss))


@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
def test_where_more_is_better_it_is_the_bad_trials_that_are_given_up(make_recipe, folder, pruner):
    rates = [0.01, 0.011, 0.012, 1.0, 0.9, 0.8, 0.7, 0.6, 0.0101]
    recipe = make_recipe(
        f"tune.pruner={pruner}",
        "tune.sampler=grid",
        "tune.trials=9",
        "evaluate.metric=exact_match",
        space={LR: rates},
    )
    document = search(recipe, folder, bench=ScoreBench()).document
    assert document["directions"] == ["maximize"]
    assert document["best"]["values"][LR] == 0.01
    assert document["best"]["objectives"] == [1.0]
    given_up = [trial["values"][LR] for trial in document["trials"] if trial["state"] == "pruned"]
    assert given_up
    assert min(given_up) > 0.0101
    losses = [loss for trial in document["trials"] for loss in trial["eval_losses"].values()]
    assert min(losses) > 0


def test_the_same_values_are_not_trained_twice(make_recipe, paper_bench, folder):
    result = search(make_recipe("tune.trials=6", "tune.pruner=none", space={"lora.r": [4, 8]}), folder)
    assert len(paper_bench.seen) == 2
    assert len(result.document["trials"]) == 6
    assert sum("same_as" in trial for trial in result.document["trials"]) == 4


@pytest.mark.usefixtures("paper_bench")
def test_a_grid_is_gone_through_once(make_recipe, folder):
    space = {"lora.r": [4, 8], LR: {"low": 1e-4, "high": 1e-2, "log": True}}
    result = search(make_recipe("tune.sampler=grid", "tune.trials=50", "tune.pruner=none", space=space), folder)
    found = sorted((trial["values"]["lora.r"], trial["values"][LR]) for trial in result.document["trials"])
    assert found == [(r, pytest.approx(rate)) for r in (4, 8) for rate in (1e-4, 1e-3, 1e-2)]


@pytest.mark.usefixtures("paper_bench")
def test_of_several_objectives_the_pareto_front_is_kept(make_recipe, folder):
    space = {LR: [0.01, 0.1, 1.0], "lora.r": [2, 8]}
    recipe = make_recipe('tune.objectives=["loss", "train_bytes"]', "tune.sampler=grid", "tune.trials=6", space=space)
    front = search(recipe, folder).document["front"]
    assert [(trial["values"][LR], trial["values"]["lora.r"]) for trial in front] == [(0.01, 2)]


def test_a_front_holds_every_trial_that_none_beats_in_both(make_recipe, folder):
    class Capacity(PaperBench):
        """A larger rank learns more, and takes more memory."""

        def measure(self, recipe, folder, *, progress):
            measured = super().measure(recipe, folder, progress=progress)
            return dataclasses.replace(measured, loss=measured.loss + 1 / recipe.lora.r)

    space = {LR: [0.01, 0.1], "lora.r": [2, 4, 8]}
    overrides = ('tune.objectives=["loss", "train_bytes"]', "tune.sampler=grid", "tune.trials=6")
    result = search(make_recipe(*overrides, space=space), folder, bench=Capacity())
    front = [(trial["values"][LR], trial["values"]["lora.r"]) for trial in result.document["front"]]
    assert front == [(0.01, 8), (0.01, 4), (0.01, 2)]
    assert [trial["objectives"] for trial in read_json(folder.results)["front"]] == [
        [pytest.approx(1 / rank), rank * 1024**3] for rank in (8, 4, 2)
    ]
    again = search(make_recipe(*overrides, space=space), folder, bench=Capacity())
    assert again.document["front"] == result.document["front"]


@pytest.mark.usefixtures("paper_bench")
def test_progress_tells_the_best_so_far_and_what_is_left(make_recipe, folder):
    said = []
    search(make_recipe("tune.trials=2"), folder, progress=said.append)
    lines = [event["message"] for event in said if "message" in event]
    assert lines[-1].startswith("trial 1: score ")
    assert "(learning_rate 0.0" in lines[-1]
    stages = {event["stage"] for event in said if "message" not in event}
    assert stages == {"trial 0, 1 of 2 train", "trial 1, 2 of 2 (best 0) train"}
    assert "best so far: trial 0 with 0; 0 trials left, 0 under way" in lines[-1]


class Terminated(BaseException):
    """What SIGTERM raises outside of trainings."""


@pytest.mark.parametrize("error", [Stopped("stopped", signal_number=2), KeyboardInterrupt(), Terminated()])
def test_a_study_that_is_stopped_leaves_what_it_found_and_goes_on(make_recipe, paper_bench, folder, error):
    def stop(_):
        if len(paper_bench.seen) == 4:
            (folder.trials / "trial-00003").mkdir(parents=True)
            raise error

    paper_bench.before = stop
    recipe, said = make_recipe("tune.trials=6", "tune.pruner=none"), []
    with pytest.raises(type(error)):
        search(recipe, folder, progress=lambda event: said.append(event.get("message", "")))
    found = read_json(folder.results)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 3 + ["fail", "waiting"]
    assert found["best"]["loss"] == min(trial["loss"] for trial in found["trials"][:3])
    assert load_recipe(folder.best).train.learning_rate == found["best"]["values"][LR]
    assert said[-1] == f"stopped; what it found so far is in {folder.path}, and it goes on later"
    assert (folder.trials / "trial-00003").is_dir()  # from whose checkpoint the trial goes on
    result = search(recipe, folder)
    assert [trial["state"] for trial in result.document["trials"]].count("complete") == 6
    assert not folder.trials.exists()


def test_a_study_that_is_stopped_before_it_found_anything_writes_nothing(make_recipe, paper_bench, folder):
    paper_bench.before = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        search(make_recipe("tune.trials=2"), folder)
    assert not folder.results.exists()
    assert not folder.best.exists()
