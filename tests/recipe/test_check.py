"""Keys that speak against each other: one line that says which, and what to do."""

from __future__ import annotations

import pytest

from edgetune.errors import RecipeError
from edgetune.recipe import parse_recipe

SMALL = '[model]\nbase = "edgetune:nano"\n\n[data]\ntrain = "edgetune:home"\n'
CLASSIFIER = '[model]\nbase = "b"\ntask = "classification"\n[data]\ntrain = "t"\n'


def parse(text: str, *overrides: str):
    return parse_recipe(text, source="a.toml", overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("export.method=gptq", "export.calibration_rows=0"), 'export.method = "gptq": has no rows; raise'),
        (("export.method=awq", "export.calibration_rows=0"), 'export.method = "awq": has no rows; raise'),
        (("export.method=awq", "model.task=classification"), '"awq": is for decoders; a classifier takes "gptq"'),
        (("export.precision=int2", "export.block_size=16"), "block_size 32, 64, 128 and accuracy_level 4 only"),
        (("export.precision=int2", "export.accuracy_level=0"), "block_size 32, 64, 128 and accuracy_level 4 only"),
        (("export.precision=int2", "model.task=classification"), '"int2": is for decoders'),
    ],
)
def test_ways_of_rounding_that_cannot_be_are_one_line(overrides, complaint):
    with pytest.raises(RecipeError, match=complaint) as error:
        parse(SMALL, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("train.plateau_patience=2",), 'plateau_patience: has no effect on schedule = "cosine"; take "plateau"'),
        (("train.plateau_patience=3", "train.schedule=linear"), 'no effect on schedule = "linear"'),
        (("train.schedule=plateau", "train.early_stopping_patience=1"), "ends training before plateau_patience = 1"),
        (("train.schedule=plateau", "train.plateau_patience=0"), "must be at least 1"),
    ],
)
def test_a_plateau_that_cannot_be_is_one_line(overrides, complaint):
    with pytest.raises(RecipeError, match=complaint) as error:
        parse(SMALL, *overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[model]\nbase = "b"\n[data]\ntrain = "t"\n[classify]\nscale = 9.0\n', r"\[classify\]: needs model.task"),
        ('[model]\nbase = "b"\n[data]\ntrain = "t"\n[evaluate]\nmetric = "macro_f1"\n', "needs model.task"),
        (CLASSIFIER + '[evaluate]\nmetric = "json"\n', "a classifier has accuracy, macro_f1, f1"),
        (CLASSIFIER + '[evaluate]\nmetric = "f1"\n', "name the label in classify.positive_label"),
        (CLASSIFIER + '[classify]\nmulti_label = true\nout_of_scope_label = "x"\n', "no label fits has none"),
    ],
)
def test_tables_that_contradict_each_other_are_a_problem(text, problem):
    with pytest.raises(RecipeError, match=problem):
        parse_recipe(text, source="r.toml")


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_what_only_few_bits_need_is_refused_of_others(precision):
    text = '[model]\nbase = "b"\n[data]\ntrain = "t"\n'
    with pytest.raises(RecipeError, match=f'int8_layers: has no effect on precision = "{precision}"; leave it out'):
        parse_recipe(
            text, source="r.toml", overrides=['export.int8_layers=["o_proj"]', f"export.precision={precision}"]
        )
