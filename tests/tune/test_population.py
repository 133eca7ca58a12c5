"""Populations of tiny trainings: what is kept of them, and that they go on. Ray has test_on_ray.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from population_session import InTurn
from safetensors.torch import load_file

from edgetune.errors import DivergedError, OutOfMemoryError, RecipeError, RunError
from edgetune.files import read_json
from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train.loop import train
from edgetune.tune.member import PopulationDir
from edgetune.tune.population import train_population

RATE = "train.learning_rate"
SPACE = {RATE: {"low": 1e-4, "high": 0.05, "log": True}, "lora.dropout": {"low": 0.0, "high": 0.2}}
SETTINGS = ("tune.population=2", "tune.workers=1", "train.max_steps=4", "train.eval_steps=2", "tune.score_of=trained")


@pytest.fixture(scope="module")
def recipe(make_recipe):
    return make_recipe(*SETTINGS, space=SPACE)


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Without the picture, which takes longer than all else; test_pictures.py looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgetune.tune.population.draw_population", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A population that was trained in one go, and what it told."""
    told = []
    folder = PopulationDir(tmp_path_factory.mktemp("whole") / "p")
    return train_population(recipe, folder, session=InTurn(), progress=told.append), told


def weights(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


class Killed(BaseException):
    """What no code catches."""


def test_the_best_member_is_a_run_folder_and_its_recipe_trains_to_the_same_adapter(recipe, whole, tmp_path):
    result, told = whole
    document, folder = result.document, result.folder
    assert (document["generations"], document["copies"], len(document["outcomes"])) == (2, 1, 4)
    last = [one for one in document["outcomes"] if one["generation"] == 2]
    assert document["best"]["loss"] == min(one["loss"] for one in last)
    copy = next(one for one in last if one["parent"] != one["member"])
    assert copy["lineage"]["changes"][0]["after_step"] == 2
    assert document["tokens"] == 2 * document["best"]["tokens"]
    best = load_recipe(folder.best)
    assert (best.train, best.lora) == (result.recipe.train, result.recipe.lora)
    assert read_json(folder.run.results / "train.json")["steps"] == 4
    train(best, RunDir(tmp_path / "again"))
    ours, theirs = (weights(path) for path in (folder.run.path, tmp_path / "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {path.name for path in folder.path.iterdir()} == {"best", "best.toml", "population.json", "cache"}
    assert any("copied from member" in event["message"] for event in told)
    again = train_population(recipe, folder, session=nobody, progress=told.append)
    assert again.document == document


def nobody(*_, **__):
    raise AssertionError("nothing is left to train")


def test_a_population_that_is_killed_goes_on_and_makes_no_generation_twice(recipe, whole, tmp_path):
    def die(begin):
        if (begin.generation, begin.member) == (2, 1):
            raise Killed

    folder, told = PopulationDir(tmp_path / "killed"), []
    with pytest.raises(Killed):
        train_population(recipe, folder, session=InTurn(before=die))
    before = [read_json(path) for path in folder.generations.path.rglob("member-*.json")]
    assert len(before) == 3
    found = train_population(recipe, folder, session=InTurn(), progress=told.append).document
    assert {"stage": "tune", "message": "goes on after generation 1"} in told
    assert not any("step 2 of 4" in event["message"] for event in told)
    assert all(outcome in found["outcomes"] for outcome in before)
    for one, other in zip(whole[0].document["outcomes"], found["outcomes"], strict=True):
        assert {**one, "wall_s": 0} == {**other, "wall_s": 0}


def test_a_member_that_diverges_is_replaced_and_one_that_never_did_is_kept(recipe, tmp_path, monkeypatch):
    original = train

    def explode(recipe, run_dir, **more):
        if run_dir.path.name == "member-1" and recipe.train.changes == ():
            raise DivergedError("the loss is nan")
        return original(recipe, run_dir, **more)

    monkeypatch.setattr("edgetune.tune.trial.train", explode)
    found = train_population(recipe, PopulationDir(tmp_path / "p"), session=InTurn()).document
    first, second = (one for one in found["outcomes"] if one["member"] == 1)
    assert first["eval_loss"] is None
    assert second["eval_loss"] is not None
    assert second["parent"] != 1


def test_where_all_diverge_it_is_an_error(recipe, tmp_path, monkeypatch):
    def explode(*_, **__):
        raise DivergedError("the loss is nan")

    monkeypatch.setattr("edgetune.tune.trial.train", explode)
    with pytest.raises(DivergedError, match="all members have diverged by step 2; search lower learning rates"):
        train_population(recipe, PopulationDir(tmp_path / "p"), session=InTurn())


def test_the_folder_of_another_population_is_refused_and_force_begins_anew(recipe, tmp_path, monkeypatch):
    folder = PopulationDir(tmp_path / "p")
    monkeypatch.setattr("edgetune.tune.population._finish", lambda *_: "finished")
    assert train_population(recipe, folder, session=lambda *_, **__: None) == "finished"
    other = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=7))
    with pytest.raises(RunError, match=r"the folder holds another population: train\.seed is 0 there, 7 here"):
        train_population(other, folder, session=nobody)
    assert train_population(other, folder, force=True, session=lambda *_, **__: None) == "finished"
    assert read_json(folder.results)["of"]["train.seed"] == 7


def test_a_folder_of_the_user_s_own_is_left_alone(recipe, tmp_path):
    (tmp_path / "best").mkdir()
    with pytest.raises(RunError, match="is no population's"):
        train_population(recipe, PopulationDir(tmp_path), force=True, session=nobody)
    assert (tmp_path / "best").is_dir()


def test_a_training_too_short_to_copy_in_is_refused(make_recipe, tmp_path):
    recipe = make_recipe(*SETTINGS, "train.eval_steps=4", space=SPACE)
    with pytest.raises(RecipeError, match=r"so that no member can copy another; lower train\.eval_steps"):
        train_population(recipe, PopulationDir(tmp_path / "p"), session=nobody)


def test_members_that_do_not_fit_side_by_side_are_refused(make_recipe, tmp_path):
    recipe = make_recipe(*SETTINGS, "tune.population=3", "tune.workers=3", 'budget.memory="1 MiB"', space=SPACE)
    with pytest.raises(OutOfMemoryError, match="3 members at once do not fit"):
        train_population(recipe, PopulationDir(tmp_path / "p"), session=nobody)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("tune.minutes=3", "tune.minutes: a population trains each member once"),
        ("tune.tokens=3", "tune.tokens: a population trains each member once"),
        ('tune.storage="sqlite://"', "tune.storage: a population is kept in its folder"),
        ('tune.objectives=["score", "bundle_bytes"]', "tune.objectives: of a population only"),
        ("evaluate.folds=2", "evaluate.folds: a population is scored on the eval rows"),
        ("train.early_stopping_patience=1", "train.early_stopping_patience: would end a member"),
        ("train.on_overfitting=dropout", "train.on_overfitting: a population changes dropout"),
        ('train.changes=[{ after_step = 1, "lora.dropout" = 0.1 }]', "train.changes: a population finds them"),
        ("tune.population=1", "must be at least 2"),
    ],
)
def test_what_has_no_place_in_a_population_is_one_line(make_recipe, override, complaint):
    with pytest.raises(RecipeError) as refusal:
        make_recipe("tune.population=3", override)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_only_a_population_has_is_refused_without_one(make_recipe):
    for setting in ("tune.workers=2", 'tune.ray_address="auto"'):
        with pytest.raises(RecipeError, match=r"is of population-based training; set tune\.population too"):
            make_recipe(setting)
