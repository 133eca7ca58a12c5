"""What matters: one key at a time, and after a search."""

from __future__ import annotations

import dataclasses
import json

import optuna
import pytest
from tune_bench import PaperBench

from edgetune.errors import DivergedError, RunError, Stopped
from edgetune.files import read_json
from edgetune.tune.importance import importances, interactions
from edgetune.tune.sampling import suggest
from edgetune.tune.search import search
from edgetune.tune.sensitivity import one_at_a_time, steps
from edgetune.tune.space import Choices, Range
from edgetune.tune.storage import quiet_optuna
from edgetune.tune.study import StudyDir

LR = "train.learning_rate"
SPACE = {LR: {"low": 1e-4, "high": 0.1, "log": True}, "lora.dropout": [0.0, 0.1], "lora.r": [4, 8]}


class NoisyBench(PaperBench):
    """Loss: distance of the learning rate, a tenth of the dropout, a hundredth for each seed, for other ranks less."""

    def measure(self, recipe, folder, *, progress):
        measured = super().measure(recipe, folder, progress=progress)
        noise = 0.01 * recipe.train.seed * (1 if recipe.lora.r == 4 else -1)
        return dataclasses.replace(measured, loss=measured.loss + recipe.lora.dropout / 10 + noise)


@pytest.fixture
def bench(monkeypatch):
    made = NoisyBench()
    monkeypatch.setattr("edgetune.tune.study.Workbench", lambda *_: made)
    return made


def test_each_key_is_varied_alone_with_every_seed_and_ranked(make_recipe, bench, tmp_path):
    found = one_at_a_time(make_recipe("tune.seeds=3", space=SPACE), StudyDir(tmp_path))
    assert [item.key for item in found.keys] == [LR, "lora.r", "lora.dropout"]
    own = (0.01, 0.0, 4)
    seen = [(item.train.learning_rate, item.lora.dropout, item.lora.r) for item in bench.seen]
    assert all(sum(one != other for one, other in zip(point, own, strict=True)) <= 1 for point in seen)
    assert seen.count(own) == 3
    assert {item.train.seed for item in bench.seen} == {0, 1, 2}
    rate = found.keys[0]
    assert [step.value for step in rate.steps] == pytest.approx([1e-4, 1e-3, 0.1])
    assert [step.effect.mean for step in rate.steps] == pytest.approx([-2, -1, -1], abs=1e-5)
    assert rate.spread == pytest.approx(2, abs=1e-5)
    dropout = found.keys[2]
    assert dropout.steps[0].effect.low == pytest.approx(-0.01)  # every seed says the same
    rank = found.keys[1]
    # Seeds 0, 1, 2 make rank 8 better by 0, 0.02 and 0.04.
    assert (rank.steps[0].effect.mean, rank.steps[0].effect.deviation) == pytest.approx((0.02, 0.02))
    assert rank.error == pytest.approx(0.02 / 3**0.5)
    assert not rank.steps[0].effect.is_sure
    assert found.document["noise"] == pytest.approx(0.01)
    document = read_json(tmp_path / "sensitivity.json")
    assert [item["key"] for item in document["keys"]] == [item.key for item in found.keys]
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("undrawn")
def test_a_sensitivity_goes_on_after_a_stop_and_more_seeds_add_to_it(make_recipe, bench, tmp_path):
    def stop(_):
        if len(bench.seen) == 4:
            raise Stopped("stopped", signal_number=2)

    bench.before = stop
    partial = []
    with pytest.raises(Stopped):
        one_at_a_time(make_recipe("tune.seeds=1", space=SPACE), StudyDir(tmp_path), on_stop=partial.append)
    found = read_json(tmp_path / "sensitivity.json")
    assert found == json.loads(json.dumps(partial[0].document))
    assert (found["is_partial"], found["trainings"]) == (True, {"planned": 6, "finished": 3})
    (rate, *others) = found["keys"]
    assert (rate["key"], [step["reason"] for step in rate["steps"]]) == (LR, [None, None, "not made"])
    assert [step["effect"]["mean"] for step in rate["steps"][:2]] == pytest.approx([-2, -1], abs=1e-5)
    assert {step["effect"] for key in others for step in key["steps"]} == {None}
    whole = one_at_a_time(make_recipe("tune.seeds=1", space=SPACE), StudyDir(tmp_path), on_stop=partial.append)
    assert (whole.document["is_partial"], len(partial)) == (False, 1)
    assert len(bench.seen) == 6 + 1
    found = one_at_a_time(make_recipe("tune.seeds=2", space=SPACE), StudyDir(tmp_path))
    assert len(bench.seen) == 12 + 1
    assert len(found.document["as_it_is"]) == 2


@pytest.mark.usefixtures("undrawn")
def test_a_sensitivity_stopped_before_the_recipe_itself_was_measured_says_nothing(make_recipe, bench, tmp_path):
    bench.before = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        one_at_a_time(make_recipe(space=SPACE), StudyDir(tmp_path), on_stop=pytest.fail)
    assert not (tmp_path / "sensitivity.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_value_that_diverges_is_named_and_one_seed_has_no_error(make_recipe, bench, tmp_path):
    def fail(recipe):
        if recipe.train.learning_rate == 0.1:
            raise DivergedError("step 1: the loss is nan")

    bench.before = fail
    found = one_at_a_time(make_recipe("tune.seeds=1", space=SPACE), StudyDir(tmp_path))
    last = found.keys[0].steps[-1]
    assert (last.value, last.effect, last.reason) == (0.1, None, "diverged: step 1: the loss is nan")
    assert found.keys[0].error is None
    assert found.document["noise"] is None


@pytest.mark.usefixtures("undrawn")
def test_a_recipe_that_itself_cannot_be_trained_is_an_error(make_recipe, bench, tmp_path):
    bench.room = 5 * 1024**3
    with pytest.raises(RunError, match="the recipe itself was not measured: cannot fit"):
        one_at_a_time(make_recipe("lora.r=8", "tune.seeds=1", space={LR: [0.01, 0.1]}), StudyDir(tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_a_budget_ends_a_sensitivity_too(make_recipe, bench, tmp_path):
    found = one_at_a_time(make_recipe("tune.seeds=1", "tune.tokens=250", space=SPACE), StudyDir(tmp_path))
    assert len(bench.seen) == 3
    assert [step.reason for item in found.keys for step in item.steps].count("not made") == 3
    assert (found.document["is_partial"], found.document["trainings"]["finished"]) == (True, 3)


def test_the_recipes_own_value_is_not_tried_twice(make_recipe):
    space = {LR: Range(1e-4, 0.1, log=True), "lora.r": Choices((2, 4))}
    assert steps(make_recipe(), space, 0.01) == {LR: [1e-4, 1e-3, 0.1], "lora.r": [2]}


@pytest.mark.usefixtures("bench")
def test_after_a_search_what_mattered_is_told_and_drawn(make_recipe, tmp_path):
    space = {**SPACE, "train.batch_size": [2, 4, 8], "train.epochs": [1, 2]}
    recipe = make_recipe("tune.trials=24", "tune.pruner=none", "tune.sampler=random", space=space)
    found = search(recipe, StudyDir(tmp_path)).document
    assert next(iter(found["importances"])) == LR
    assert found["importances"][LR] > 0.5
    assert [pair["keys"] for pair in found["interactions"]][:2] == [
        [LR, "train.batch_size"],
        ["train.batch_size", "train.epochs"],
    ]
    assert found["importances_told"] == "by the scores of 24 measured trials"
    assert all(0 <= pair["share"] < 0.3 for pair in found["interactions"])
    for name in ("history", "importances", "interactions"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_two_keys_that_only_matter_together_show_as_a_pair():
    space = {"train.batch_size": Choices((2, 8)), "train.epochs": Choices((1, 2)), "lora.dropout": Range(0.0, 0.5)}

    def loss(trial):
        values = suggest(trial, space)
        return float((values["train.batch_size"] == 8) != (values["train.epochs"] == 2))

    with quiet_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(loss, n_trials=60)
        alone = importances(study, space, seed=0)
    pair = interactions(study, space, alone, seed=0)[0]
    assert pair.keys == ("train.batch_size", "train.epochs")
    assert pair.share > 0.7
    assert all(share < 0.4 for share in alone.values())


def test_of_few_trials_nothing_is_said_about_what_matters(make_recipe, bench, tmp_path):
    found = search(make_recipe("tune.trials=3"), StudyDir(tmp_path)).document
    assert (found["importances"], found["early_importances"], found["interactions"]) == (None, None, [])
    assert found["importances_told"] == "3 measured trials are too few to say what matters: 8 for 2 keys"
    assert not (tmp_path / "importances.png").exists()
    assert (tmp_path / "history.png").exists()
    assert len(bench.seen) == 3


@pytest.mark.usefixtures("bench")
def test_trials_that_were_given_up_count_by_the_loss_that_all_of_them_have(make_recipe, tmp_path):
    recipe = make_recipe("tune.trials=24", "tune.pruner=halving", "tune.sampler=random", space=SPACE)
    found = search(recipe, StudyDir(tmp_path)).document
    given_up = [trial for trial in found["trials"] if trial["state"] == "pruned"]
    early = found["early_importances"]
    assert given_up
    assert (early["after"], early["trials"]) == (0.2, 24)
    assert early["shares"][LR] > 0.8  # the loss during training is that of the learning rate alone
    assert f"by the eval loss after 20% of the training, of 24 trials: {LR} " in found["importances_told"]
    assert f"{len(given_up)} that were given up have none" in found["importances_told"] or not found["importances"]
    assert (tmp_path / "importances.png").exists()
