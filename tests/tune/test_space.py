"""Search spaces: what is one, what is none, and that all of it is known before a base is loaded."""

from __future__ import annotations

import pytest

from edgetune.errors import RecipeError
from edgetune.recipe import parse_recipe
from edgetune.tune.sampling import decoded, encoded
from edgetune.tune.space import Choices, Range, default_space, read_space, recipe_with, values_of

START = """
[model]
base = "no such folder"
[data]
train = "no such file"
"""


def a_recipe(more="", **options):
    return parse_recipe(START + more, source="test", name="a", **options)


def space_of(line, **options):
    return read_space(a_recipe(f"[tune.space]\n{line}\n", **options))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('"train.learning_rate" = []', "empty list"),
        ('"train.learning_rate" = [1e-4]', "one choice only"),
        ('"train.learning_rate" = [1e-4, 1e-4]', "twice"),
        ('"train.epochs" = [1, 1.0]', "twice"),
        ('"train.learning_rate" = { low = 1e-3, high = 1e-5 }', "low = 0.001 is greater than high = 1e-05"),
        ('"train.learning_rate" = { low = 1e-3, high = 1e-3 }', "both 0.001"),
        ('"train.weight_decay" = { low = 0, high = 0.1, log = true }', "log needs low above 0"),
        ('"train.weight_decay" = { low = 0, high = 0.1, log = 1 }', "log = 1 is not true or false"),
        ('"train.learning_rate" = { low = 1e-5 }', "has no high"),
        ('"train.learning_rate" = { low = 1e-5, high = "a" }', "high = 'a' is not a number"),
        ('"train.learning_rate" = { low = nan, high = 1.0 }', "low = nan is not a number"),
        ('"train.learning_rate" = { low = 1e-5, high = inf }', "high = inf must be finite"),
        ('"train.learning_rate" = { low = 1e-5, high = 1e-3, lgo = true }', "'lgo' is no key of a range"),
        ('"train.learning_rate" = 1e-4', "neither a list of choices"),
        ('"train.weight_decay" = { low = 0, high = 0.1, step = 0 }', "step = 0 must lie"),
        ('"train.weight_decay" = { low = 0, high = 0.1, step = 0.2 }', "step = 0.2 must lie"),
        ('"train.weight_decay" = { low = 0.01, high = 0.1, step = 0.01, log = true }', "both log and step"),
        ('"lora.r" = { low = 4, high = 8.5 }', "high = 8.5 is not an integer"),
        ('"lora.r" = { low = 0, high = 8 }', "0 must be at least 1"),
        ('"lora.dropout" = { low = 0, high = 1 }', "1.0 must be at most 0.95"),
        ('"train.schedule" = ["linear", "step"]', "'step' is not 'constant' or 'linear' or 'cosine'"),
        ('"train.schedule" = { low = 0, high = 1 }', "give a list of choices"),
        ('"export.block_size" = { low = 16, high = 64 }', "give a list of choices"),
        ('"train.learnig_rate" = [1e-4, 1e-3]', "no such key; did you mean 'train.learning_rate'?"),
        ('"train" = [1, 2]', "no such key"),
        ('"qqq.zzz" = [1, 2]', "no such key"),
        ("train.learning_rate = [1e-4, 1e-3]", 'put the whole name in quotes: space."train.learning_rate"'),
        ('"model.base" = ["a", "b"]', "cannot be searched: all trials share one base"),
        ('"data.eval_fraction" = [0.1, 0.2]', "cannot be compared"),
        ('"evaluate.metric" = ["json", "loss"]', "[evaluate] is the same in all trials"),
        ('"tune.seed" = [1, 2]', "[tune] is the same in all trials"),
        ('"train.offload_activations" = [true, false]', "moves what gradient_checkpointing keeps"),
    ],
)
def test_a_bad_space_is_refused_before_anything_is_loaded(line, problem):
    with pytest.raises(RecipeError) as refusal:
        space_of(line)
    assert problem in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_all_problems_of_a_space_are_named_at_once():
    with pytest.raises(RecipeError) as refusal:
        space_of('"lora.r" = []\n"train.epoch" = [1, 2]\n"train.epochs" = [1, 2]')
    assert len(refusal.value.problems) == 2


def test_a_classifier_s_space_has_no_key_that_does_nothing_for_it():
    with pytest.raises(RecipeError, match=r'"export\.head_bits": has no effect on a classifier'):
        space_of('"export.head_bits" = [4, 8]', overrides=["model.task=classification"])
    repaired = ["model.task=classification", "tune.score_of=exported"]
    assert set(space_of('"export.repair_steps" = [10, 100]', overrides=repaired)) == {"export.repair_steps"}


def test_epochs_are_not_searched_beside_max_steps():
    with pytest.raises(RecipeError, match=r'"train\.epochs": has no effect beside train\.max_steps'):
        space_of('"train.epochs" = [1, 2]', overrides=["train.max_steps=9"])


def test_cmaes_needs_a_range():
    with pytest.raises(RecipeError, match="only choices"):
        read_space(a_recipe('[tune]\nsampler = "cmaes"\n[tune.space]\n"lora.r" = [8, 16]'))


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ('"train.learning_rate" = { low = 1e-5, high = 1e-3, log = true }', Range(1e-5, 1e-3, log=True)),
        ('"train.epochs" = { low = 1, high = 4, step = 1 }', Range(1.0, 4.0, step=1.0)),
        ('"lora.r" = { low = 4, high = 64, log = true }', Range(4, 64, log=True, is_integer=True)),
        ('"train.epochs" = [1, 2]', Choices((1.0, 2.0))),
        ('"lora.use_dora" = [true, false]', Choices((True, False))),
        ('"lora.target_modules" = ["all-linear", ["q_proj", "v_proj"]]', Choices(("all-linear", ["q_proj", "v_proj"]))),
    ],
)
def test_a_space_is_read_as_ranges_and_choices(line, item):
    assert list(space_of(line).values()) == [item]


def test_a_space_survives_being_written_and_read_again():
    line = (
        '"train.learning_rate" = { low = 1e-5, high = 1e-3, log = true }\n"lora.target_modules" = ["all-linear", ["q"]]'
    )
    recipe = a_recipe(f"[tune.space]\n{line}\n")
    assert parse_recipe(recipe.to_toml(), source="again", name="a") == recipe


def test_values_reach_the_recipe_in_its_own_types():
    recipe = recipe_with(
        a_recipe(), {"lora.target_modules": ["q_proj"], "train.epochs": 3, "train.learning_rate": 1e-3}
    )
    assert recipe.lora.target_modules == ("q_proj",)
    assert (recipe.train.epochs, recipe.train.learning_rate) == (3.0, 1e-3)
    with pytest.raises(RecipeError, match="at least 1"):
        recipe_with(a_recipe(), {"lora.r": 0})


def test_lists_are_texts_in_a_study_and_lists_again_in_a_recipe():
    item = Choices(("all-linear", ["q_proj", "v_proj"]))
    assert [decoded(encoded(value), item) for value in item.values] == list(item.values)
    assert isinstance(encoded(["q_proj"]), str)


def test_the_recipes_own_values_are_those_that_lie_in_the_space():
    space = {
        "train.learning_rate": Range(1e-4, 1e-2, log=True),
        "lora.r": Choices((8, 32)),
        "train.epochs": Range(1.0, 4.0, step=0.75),
        "lora.target_modules": Choices(("all-linear", ["q_proj"])),
    }
    assert values_of(a_recipe(), space, learning_rate=1e-3) == {
        "train.learning_rate": 1e-3,
        "lora.target_modules": "all-linear",
    }


def test_the_default_space_lies_around_the_recipe_and_the_recipe_in_it():
    recipe = a_recipe('[train]\nbatch_size = "auto"\n')
    space = default_space(recipe, 2e-4)
    assert {"train.learning_rate", "train.batch_size", "train.epochs", "lora.r", "lora.dropout"} <= set(space)
    assert set(values_of(recipe, space, learning_rate=2e-4)) == set(space)
    for name, item in space.items():
        for value in item.points():
            recipe_with(recipe, {name: value})


def test_what_cannot_matter_is_not_in_the_default_space():
    assert "train.epochs" not in default_space(a_recipe("[train]\nmax_steps = 5\n"), 1e-4)
    assert "lora.r" not in default_space(a_recipe('[lora]\ninit_from = "x"\n'), 1e-4)


def test_the_points_of_a_range_reach_from_end_to_end():
    assert Range(1e-4, 1e-2, log=True).points() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert Range(0.0, 0.2).points(5) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert Range(1.0, 2.0, step=0.25).points() == [1, 1.25, 1.5, 1.75, 2]
    assert Range(4, 64, log=True, is_integer=True).points() == [4, 16, 64]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("objectives = []", "at least one"),
        ('objectives = ["score", "score"]', "once"),
        ('objectives = ["score", "train_bytes"]\npruner = "halving"', "by one objective"),
        ('objectives = ["score", "train_bytes"]\nsampler = "cmaes"', "one objective"),
        ("trials = 0", "at least 1"),
        ("tokens = 10000000000000000", "at most"),
        ('sampler = "bayes"', "'bayes' is not"),
        ("space = 3", "3 is not a table"),
    ],
)
def test_a_table_that_says_something_impossible_is_refused(line, problem):
    with pytest.raises(RecipeError, match=problem):
        a_recipe(f"[tune]\n{line}\n")


def test_a_recipe_that_does_not_tune_says_nothing_about_it():
    assert "[tune]" not in a_recipe().to_toml()
