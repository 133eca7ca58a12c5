"""Values of a population: where it begins, and where a copy goes from there."""

from __future__ import annotations

import random

import pytest

from edgetune.errors import RecipeError
from edgetune.tune.mutation import first_values, perturbed, population_space
from edgetune.tune.space import Choices, Range

RATE, DECAY, DROPOUT = "train.learning_rate", "train.weight_decay", "lora.dropout"
SPACE = {
    RATE: Range(1e-4, 1e-2, log=True),
    DECAY: Range(0.0, 0.1),
    DROPOUT: Choices((0.0, 0.05, 0.1, 0.2)),
}


def test_without_a_space_the_three_keys_that_can_change_are_searched(make_recipe):
    space = population_space(make_recipe("tune.population=3", space={}), learning_rate=1e-3)
    assert set(space) == {RATE, DECAY, DROPOUT}


def test_a_key_that_cannot_change_while_it_trains_is_refused(make_recipe):
    with pytest.raises(RecipeError, match=r'tune\.space\."lora\.r": cannot change while a population trains'):
        population_space(make_recipe("tune.population=3"))


def test_the_first_member_has_the_recipe_s_values_and_the_others_are_spread_over_the_range(make_recipe):
    recipe = make_recipe("tune.population=8", "train.learning_rate=2e-3", space={RATE: [1e-4, 1e-2]})
    members = first_values(recipe, SPACE, learning_rate=2e-3)
    assert (members[0][RATE], members[0][DECAY], members[0][DROPOUT]) == (2e-3, 0.0, 0.0)
    decays = sorted(member[DECAY] for member in members[1:])
    assert all(SPACE[key].has(value) for member in members for key, value in member.items())
    assert max(decays) - min(decays) > 0.05
    assert len({int(decay / 0.1 * 8) for decay in decays}) == 7
    assert members == first_values(recipe, SPACE, learning_rate=2e-3)


@pytest.mark.parametrize("value", [1e-4, 1e-3, 1e-2])
def test_a_copy_moves_a_tenth_of_the_range_or_is_drawn_anew_and_never_leaves_it(value):
    draw = random.Random(0)
    found = [perturbed({RATE: value, DECAY: 0.0, DROPOUT: 0.05}, SPACE, draw) for _ in range(300)]
    assert all(SPACE[key].has(one) for member in found for key, one in member.items())
    factor = (1e-2 / 1e-4) ** 0.1
    near = [one[RATE] for one in found if round(one[RATE] / value, 3) in (round(factor, 3), round(1 / factor, 3), 1.0)]
    assert 0.6 < len(near) / len(found) < 0.9
    assert {round(one[DECAY], 9) for one in found} > {0.0, 0.01}
    neighbours = [one[DROPOUT] in (0.0, 0.1) for one in found]
    assert sum(neighbours) / len(found) > 0.7


def test_a_range_with_steps_keeps_to_them():
    space = {DROPOUT: Range(0.0, 0.3, step=0.1)}
    draw = random.Random(1)
    found = {perturbed({DROPOUT: 0.1}, space, draw)[DROPOUT] for _ in range(100)}
    assert found == {0.0, 0.1, 0.2, 0.3}
