"""What of a space can have no effect is refused before the first trial; and the tables of that say what is so."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from edgetune.errors import RecipeError
from edgetune.model.memory import estimate
from edgetune.model.on_device import expect_on_device
from edgetune.recipe import TABLES, number_kind, parse_recipe
from edgetune.tune.reach import IN_TRAINING, ON_DEVICE
from edgetune.tune.space import FIXED_KEYS, FIXED_TABLES, read_space, recipe_with
from edgetune.tune.trial import DEVICE_BYTES_PER_S

EXPORTED = 'score_of = "exported"\n'
UNREPAIRED = EXPORTED + "[export]\nrepair_steps = 0"
ON = '"export.repair_on" = ["labels", "both"]'
LR = '"train.learning_rate" = [1e-4, 1e-3]'


def space_of(tune, *lines, base="no such folder"):
    text = f'[model]\nbase = "{base}"\n[data]\ntrain = "x"\n[tune]\n{tune}\n'
    more = "".join(f"{line}\n" for line in lines)
    return read_space(parse_recipe(text + (f"[tune.space]\n{more}" if lines else ""), source="a", name="a"))


@pytest.mark.parametrize(
    ("tune", "lines", "told"),
    [
        ("", ['"export.repair_steps" = [0, 50]'], 'has no effect on score_of = "deployed"; take "exported"'),
        ("", ['"export.calibration_rows" = [8, 64]'], 'take "exported", or leave it out'),
        ("", ['"export.method" = ["search", "gptq"]'], '"gptq" looks at rows, which score_of = "deployed" does not'),
        ("", ['"export.merge_base" = ["auto", "original"]'], '"auto" looks at rows'),
        ('score_of = "trained"', ['"export.method" = ["rtn", "hqq"]'], '"trained"; take "deployed", or leave'),
        ('score_of = "trained"', ['"export.repair_steps" = [0, 50]'], '"trained"; take "exported", or leave'),
        ('score_of = "trained"', [LR, '"export.block_size" = [32, 64]'], '"export.block_size": has no effect'),
        ('score_of = "exported"', ['"export.max_length" = [64, 128]'], '"export.max_length": has no effect'),
        ("", ['"train.fused_loss" = [true, false]'], 'leave it out, or add the objective "train_bytes"'),
        (UNREPAIRED, [ON], "export.repair_steps is 0"),
        (EXPORTED + '[export]\nprecision = "int8"', ['"export.repair_steps" = [0, 9]'], 'on export.precision = "int8"'),
        (EXPORTED + '[export]\nmethod = "rtn"', ['"export.calibration_rows" = [8, 9]'], 'on export.method = "rtn"'),
        ('objectives = ["bundle_bytes"]', [LR], 'tune.objectives: "bundle_bytes" is the same in the whole space'),
        ('objectives = ["score", "tokens_per_s"]', [LR], "or search export.block_size, export.head_bits or the like"),
        ('objectives = ["score", "device_bytes"]', [], 'tune.objectives: "device_bytes" is the same'),
        ('objectives = ["score", "train_bytes"]', [LR], 'tune.objectives: "train_bytes" is the same'),
        (
            'objectives = ["score", "bundle_bytes"]\nscore_of = "trained"',
            ['"export.block_size" = [32, 64]'],
            'tune.objectives: "score" is the same',
        ),
        (
            'objectives = ["bundle_bytes"]',
            [LR, '"export.block_size" = [32, 64]'],
            '"train.learning_rate": changes no objective (bundle_bytes); leave it out, or add the objective "score"',
        ),
    ],
)  # fmt: skip
def test_what_can_have_no_effect_is_one_line_with_its_cure(tune, lines, told):
    with pytest.raises(RecipeError) as refusal:
        space_of(tune, *lines)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("tune", "lines"),
    [
        ("", ['"export.method" = ["rtn", "search", "hqq"]']),
        ("", ['"export.merge_base" = ["trained", "original"]']),
        ('score_of = "exported"', ['"export.method" = ["auto", "awq"]', ON]),
        (UNREPAIRED, [ON, '"export.repair_steps" = [0, 9]']),
        ('objectives = ["score", "bundle_bytes"]', [LR, '"export.block_size" = [32, 64]']),
        ('objectives = ["score", "train_bytes"]', [LR, '"train.fused_loss" = [true, false]']),
        ('objectives = ["loss", "train_bytes"]', []),
    ],
)  # fmt: skip
def test_what_has_an_effect_is_searched(tune, lines):
    assert space_of(tune, *lines)


OTHERS = {
    "model.quantization": "none",
    "model.embedding_quantization": "int8",
    "model.compute_dtype": "bfloat16",
    "data.loss_on": "all",
    "data.too_long": "truncate",
    "lora.target_modules": ["q_proj"],
    "train.optimizer": "paged_adamw_8bit",
    "train.schedule": "linear",
    "train.weight_decay": 0.1,
    "lora.dropout": 0.0,
    "train.on_overfitting": "dropout",
    "export.precision": "int8",
    "export.head_bits": 4,
    "export.block_size": 32,
    "export.accuracy_level": 0,
    "export.method": "rtn",
    "export.merge_base": "original",
    "export.repair_on": "both",
    "export.int8_layers": ["o_proj"],
}
"""Other values than the default, of keys that are neither switches nor any number."""


def others(recipe):
    """For each key that can be searched the recipe with another value, those aside that go with no such recipe."""
    for name in (f"{table}.{item.name}" for table, kind in TABLES.items() for item in dataclasses.fields(kind)):
        table, _, key = name.partition(".")
        value = getattr(getattr(recipe, table), key)
        if table in (*FIXED_TABLES, "classify") or name in FIXED_KEYS:
            continue
        is_number = number_kind(name) and value not in (None, "auto")
        other = (not value) if isinstance(value, bool) else OTHERS.get(name, 2 * value + 1 if is_number else None)
        if other is not None:
            with contextlib.suppress(RecipeError):
                yield name, recipe_with(recipe, {name: other})


def test_the_tables_are_what_the_estimates_depend_on(tiny_base):
    text = f'[model]\nbase = "{tiny_base}"\n[data]\ntrain = "x"\nmax_seq_len = 128\n[lora]\ndropout = 0.1\n'
    recipe = parse_recipe(text, source="a", name="a")

    def on_device(changed):
        found = expect_on_device(changed)
        return found.bundle_bytes, found.peak_bytes, found.tokens_per_s(DEVICE_BYTES_PER_S)

    plain, peak, tried = on_device(recipe), estimate(recipe, on="cpu", trained_share=0.5).peak_bytes, set()
    for name, changed in others(recipe):
        tried.add(name)
        assert all(a != b for a, b in zip(on_device(changed), plain, strict=True)) == (name in ON_DEVICE), name
        if name not in IN_TRAINING:
            assert estimate(changed, on="cpu", trained_share=0.5).peak_bytes == peak, name
    assert tried > ON_DEVICE
    assert tried > {"train.weight_decay", "train.schedule", "lora.alpha", "export.method", "export.repair_steps"}
