"""What a member was trained with, as its recipe says it."""

from __future__ import annotations

import dataclasses
import json

from edgetune.recipe import parse_recipe
from edgetune.tune.lineage import Lineage

RATE, DECAY = "train.learning_rate", "train.weight_decay"


def test_only_what_is_another_value_is_a_change():
    begun = Lineage({RATE: 1e-3, DECAY: 0.0})
    same = begun.then(10, {RATE: 1e-3, DECAY: 0.0})
    changed = same.then(20, {RATE: 2e-3, DECAY: 0.0})
    assert same == begun
    assert changed.changes == ({"after_step": 20, RATE: 2e-3},)
    assert changed.then(30, {RATE: 2e-3, DECAY: 0.1}).now == {RATE: 2e-3, DECAY: 0.1}


def test_it_is_kept_as_json():
    lineage = Lineage({RATE: 1e-3}).then(10, {RATE: 2e-3})
    assert Lineage.from_json(json.loads(json.dumps(dataclasses.asdict(lineage)))) == lineage


def test_its_recipe_is_a_training_of_its_own_that_reads_back(make_recipe):
    recipe = make_recipe("tune.population=4", "tune.workers=2", space={RATE: {"low": 1e-4, "high": 1e-2}})
    found = Lineage({RATE: 1e-3, DECAY: 0.01}).then(1, {RATE: 2e-3}).of(recipe)
    assert (found.train.learning_rate, found.train.weight_decay) == (1e-3, 0.01)
    assert found.train.changes == ({"after_step": 1, RATE: 2e-3},)
    assert (found.tune.population, found.tune.workers, found.train.divergence_restarts) == (None, None, 0)
    assert parse_recipe(found.to_toml(), source="test", name="tiny") == found
