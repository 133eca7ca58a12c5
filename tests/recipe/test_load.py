"""Reading a recipe: defaults, overrides, every problem with its place; written back, the same recipe."""

from __future__ import annotations

import pytest

from edgetune.errors import RecipeError
from edgetune.recipe import load_recipe, parse_recipe

SMALL = '[model]\nbase = "edgetune:nano"\n\n[data]\ntrain = "edgetune:home"\n'
CLASSIFIER = '[model]\nbase = "b"\ntask = "classification"\n[data]\ntrain = "t"\n'


def parse(text: str, *overrides: str):
    return parse_recipe(text, source="a.toml", overrides=overrides)


def test_a_small_recipe_gets_the_documented_defaults():
    recipe = parse(SMALL)
    assert (recipe.lora.r, recipe.lora.alpha, recipe.train.learning_rate) == (16, 32.0, "auto")


def test_a_recipe_written_back_reads_as_the_same_recipe():
    recipe = parse(
        SMALL + 'columns = { prompt = "a \\"b\\"" }\n[lora]\ntarget_modules = ["q_proj", "v_proj"]\n'
        "[train]\nlearning_rate = 1e-5\nmax_steps = 3\n"
    )
    assert parse_recipe(recipe.to_toml(), source="b.toml") == recipe


def test_an_unknown_key_is_named_with_its_line_and_the_closest_key():
    with pytest.raises(RecipeError) as error:
        parse(SMALL + "[lora]\ndropuot = 0.1\n")
    assert str(error.value) == "a.toml:7: lora.dropuot: unknown key; did you mean 'dropout'?"


def test_all_problems_are_reported_at_once():
    with pytest.raises(RecipeError) as error:
        parse('[model]\nquantization = "int3"\n[data]\ntrain = 3\n[lorra]\nr = 1\n', "train.epochs=0")
    assert len(error.value.problems) == 5
    assert error.value.exit_code == 2


def test_problems_are_told_in_the_order_of_the_file_and_those_of_the_command_line_last():
    text = '[train]\nepochs = 0\n[data]\n[lorra]\nr = 1\n[model]\nbase = 3\ntask = "x"\n'
    with pytest.raises(RecipeError) as error:
        parse(text, "lora.r=0", "nonsense")
    told = [problem.partition(": ")[0] for problem in error.value.problems]
    missing = "a.toml"  # data.train, which has no line: after the header of its table
    assert told == ["a.toml:2", missing, "a.toml:4", "a.toml:7", "a.toml:8", "--set nonsense", "--set lora.r"]
    assert error.value.problems[1] == "a.toml: data.train: missing; this key has no default"


def test_what_is_missing_with_its_table_is_told_after_what_is_there():
    with pytest.raises(RecipeError) as error:
        parse("[train]\nepochs = 0\n")
    assert [problem.split(":")[1].strip() for problem in error.value.problems] == ["2", "model.base", "data.train"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("lora.r=0", "must be at least 1"),
        ("lora.r=1.5", "1.5 is not an integer"),
        ("lora.r=true", "True is not an integer"),
        ("train.learning_rate=-1", "must be greater than 0"),
        ("train.learning_rate=nan", "is not"),
        ("train.weight_decay=inf", "train.weight_decay: inf must be finite"),
        ("train.learning_rate=-inf", "train.learning_rate: -inf must be finite"),
        ("train.schedule=step", "'step' is not 'constant' or 'linear' or 'cosine'"),
        ("export.block_size=48", "48 is not 16 or 32"),
        ("lora.target_modules=[1]", "is not 'all-linear' or a list of a text"),
        ("train", "must be table.key=value"),
        ("data.train=''", "data.train: is empty"),
        ("budget.memory=2 apples", "is not a size"),
        ("budget.memory=" + "9" * 400 + " GiB", r"'9{59}\.\.\. is not a size"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_wanted(override, complaint):
    with pytest.raises(RecipeError, match=complaint.replace("(", r"\(")):
        parse(SMALL, override)


def test_overrides_win_and_need_no_quotes_for_text():
    recipe = parse(SMALL, "train.learning_rate=1e-4", "train.schedule=linear", "data.eval=/tmp/x.jsonl")
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.data.eval) == (1e-4, "linear", "/tmp/x.jsonl")


def test_a_duplicate_key_is_an_error():
    with pytest.raises(RecipeError, match="not valid TOML"):
        parse(SMALL + 'train = "b"\n')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")


def test_a_classifier_has_defaults_of_its_own_that_the_recipe_overrides():
    recipe = parse_recipe(CLASSIFIER + "[train]\nepochs = 3\n", source="r.toml")
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.data.too_long) == (3, 32, "truncate")
    assert recipe.evaluate.metric == "accuracy"
    assert parse_recipe(recipe.to_toml(), source="again.toml") == recipe


def test_a_budget_of_nothing_is_a_problem():
    with pytest.raises(RecipeError, match=r"budget\.device_memory: '0 MiB' leaves no room"):
        parse_recipe('[model]\nbase = "b"\n[data]\ntrain = "t"\n[budget]\ndevice_memory = "0 MiB"\n', source="r.toml")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.weight_decay=1" + "0" * 400, "weight_decay"),
        ("train.seed=-1" + "0" * 400, "seed"),
        ("train.batch_size=0x" + "f" * 9000, "batch_size"),
        ("data.max_train_rows=1" + "0" * 30, "max_train_rows"),
        ("lora.r=" + "9" * 5000, "lora.r"),
        ("data.columns=" + "[" * 5000, "columns"),
    ],
)
def test_numbers_and_brackets_without_end_are_a_problem_of_the_recipe(setting: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint) as caught:
        parse_recipe('[model]\nbase = "x"\n[data]\ntrain = "y"\n', source="r.toml", overrides=[setting])
    assert len(str(caught.value)) < 200
