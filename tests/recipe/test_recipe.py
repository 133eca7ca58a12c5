"""What follows from the values of a recipe."""

from __future__ import annotations

import pytest

from edgetune.recipe import parse_recipe

SMALL = '[model]\nbase = "edgetune:nano"\n\n[data]\ntrain = "edgetune:home"\n'
CLASSIFIER = '[model]\nbase = "b"\ntask = "classification"\n[data]\ntrain = "t"\n'


def parse(text: str, *overrides: str):
    return parse_recipe(text, source="a.toml", overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "needs_rows"),
    [
        ((), True),
        (("export.precision=int2",), True),
        (("export.precision=int8",), False),
        (("export.precision=int8", "export.method=gptq"), True),
        (("export.calibration_rows=0",), True),
        (("export.method=hqq",), True),
        (("export.precision=fp16", "export.method=gptq"), False),
    ],
)
def test_few_bits_and_calibration_need_the_training_rows(overrides, needs_rows):
    recipe = parse(SMALL, *overrides)
    assert recipe.export.needs_rows == needs_rows
    assert parse_recipe(recipe.to_toml(), source="b.toml").export == recipe.export


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("data.packing=false", "data.packing"),
        ('export.int8_layers=["query"]', "export.int8_layers"),
        ("export.head_bits=4", "export.head_bits"),
        ("export.max_length=64", "export.max_length"),
        ("train.fused_loss=false", "train.fused_loss"),
        ("evaluate.max_new_tokens=8", "evaluate.max_new_tokens"),
    ],
)
@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_a_key_that_does_nothing_for_a_classifier_is_named_and_not_refused(setting, key, precision) -> None:
    asked = [setting, f"export.precision={precision}"]
    assert parse_recipe(CLASSIFIER, source="r.toml", overrides=asked).idle_keys == (key,)
    if precision == "int4":
        assert parse(SMALL, setting).idle_keys == ()


def test_a_classifier_is_repaired_only_where_that_is_asked_for() -> None:
    assert parse_recipe(CLASSIFIER, source="r.toml").export.repair_steps == 0
    asked = parse_recipe(CLASSIFIER, source="r.toml", overrides=["export.repair_steps=200"])
    assert (asked.export.repair_steps, asked.idle_keys) == (200, ())


def test_a_classifier_s_own_defaults_are_no_idle_keys() -> None:
    recipe = parse_recipe(CLASSIFIER, source="r.toml")
    assert recipe.idle_keys == ()
    assert parse_recipe(recipe.to_toml(), source="again.toml").idle_keys == ()
