"""Which sampler "auto" is."""

from __future__ import annotations

import pytest
from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner

from edgetune.recipe import parse_recipe
from edgetune.tune.sampling import GP_TRIALS, make_pruner, settled
from edgetune.tune.search import search
from edgetune.tune.space import default_space, read_space
from edgetune.tune.study import StudyDir

START = '[model]\nbase = "x"\n[data]\ntrain = "x"\n'
CHOICES = (
    '"lora.r" = [4, 8]\n"train.schedule" = ["linear", "cosine"]\n"train.epochs" = { low = 1, high = 3, step = 1 }\n'
)
RATE = '"train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }\n'


def sampler_of(tune, space):
    recipe = parse_recipe(f"{START}[tune]\n{tune}\n[tune.space]\n{space}", source="a", name="a")
    return settled(recipe.tune, read_space(recipe)).sampler


@pytest.mark.parametrize(
    ("tune", "space", "sampler"),
    [
        ("trials = 12", CHOICES, "grid"),
        ("trials = 11", CHOICES, "tpe"),
        ("trials = 12\nminutes = 60", CHOICES, "tpe"),
        ("trials = 12\ntokens = 1000", CHOICES, "tpe"),
        ("trials = 12", RATE, "gp"),
        ("trials = 12", RATE + '"lora.r" = [4, 8]\n', "gp"),
        ("trials = 12", RATE + CHOICES.replace("step = 1", "log = false"), "gp"),
        ("trials = 12", RATE + '"lora.r" = [4, 8]\n"train.schedule" = ["linear", "cosine"]\n', "tpe"),
        (f"trials = {GP_TRIALS}", RATE, "tpe"),
        ('trials = 12\nsampler = "random"', RATE, "random"),
    ],
)
def test_auto_is_a_grid_where_that_is_gone_through_a_gaussian_process_for_few_trials_else_tpe(tune, space, sampler):
    assert sampler_of(tune, space) == sampler


def test_the_default_space_is_searched_by_a_gaussian_process():
    recipe = parse_recipe(START, source="a", name="a")
    assert settled(recipe.tune, default_space(recipe, 1e-4)).sampler == "gp"


@pytest.mark.parametrize(
    ("tune", "pruner"),
    [
        ('sampler = "tpe"', SuccessiveHalvingPruner),
        ('sampler = "gp"', NopPruner),
        ('sampler = "gp"\npruner = "halving"', SuccessiveHalvingPruner),
        ('sampler = "tpe"\nobjectives = ["score", "train_bytes"]', NopPruner),
        ('sampler = "tpe"\npruner = "hyperband"', HyperbandPruner),
    ],
)
def test_trials_are_given_up_unless_the_sampler_learns_from_whole_ones_alone(tune, pruner):
    assert type(make_pruner(parse_recipe(f"{START}[tune]\n{tune}\n", source="a", name="a").tune)) is pruner


@pytest.mark.usefixtures("paper_bench", "undrawn")
def test_what_auto_became_is_told_and_a_grid_ends_with_its_last_combination(make_recipe, tmp_path):
    recipe = make_recipe("tune.sampler=auto", "tune.trials=9", space={"lora.r": [2, 4, 8], "lora.dropout": [0.0, 0.1]})
    document = search(recipe, StudyDir(tmp_path)).document
    assert document["sampler"] == "grid"
    assert len({str(trial["values"]) for trial in document["trials"]}) == len(document["trials"]) == 6
