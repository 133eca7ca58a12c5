"""Whether the best was luck, and what is written where."""

from __future__ import annotations

import pytest

from edgetune.errors import RunError, Stopped
from edgetune.files import read_json
from edgetune.recipe import load_recipe
from edgetune.tune.apply import apply_values, with_values_in
from edgetune.tune.effects import noise, paired_effect
from edgetune.tune.search import search
from edgetune.tune.study import StudyDir

pytestmark = pytest.mark.usefixtures("undrawn")
LR = "train.learning_rate"
TEXT = """# About this recipe.
[model]
base = "a # b"  # a comment
[data]
train = "x"

[train]
epochs = 2      # two
learning_rate=1e-3
# the end
"""


def test_the_best_and_the_first_recipe_are_trained_with_seeds_that_no_trial_had(make_recipe, paper_bench, tmp_path):
    recipe = make_recipe("tune.trials=8", "tune.pruner=none", "train.learning_rate=0.1", "tune.seeds=2")
    found = search(recipe, StudyDir(tmp_path), confirms=True)
    extra = paper_bench.seen[8:]
    assert [(item.train.seed, item.train.learning_rate) for item in extra] == [
        (seed, rate) for seed in (1, 2) for rate in (found.values[LR], 0.1)
    ]
    assert found.confirmation.seeds == (1, 2)
    assert found.confirmation.is_better
    assert found.confirmation.effect.mean == pytest.approx(1 - found.document["best"]["loss"])
    assert read_json(tmp_path / "tune.json")["confirmation"]["seeds"] == [1, 2]


def test_a_best_that_was_luck_is_not_better(make_recipe, paper_bench, tmp_path, monkeypatch):
    from tune_bench import Lucky

    monkeypatch.setattr("edgetune.tune.study.Workbench", lambda *_: Lucky())
    found = search(make_recipe("tune.trials=3", "tune.seeds=3"), StudyDir(tmp_path / "study"), confirms=True)
    assert not found.confirmation.is_better
    assert paper_bench.seen == []


def test_trainings_with_other_seeds_go_on_after_a_stop_and_are_made_once(make_recipe, paper_bench, tmp_path):
    recipe = make_recipe("tune.trials=2", "tune.seeds=3", "train.learning_rate=0.1")

    def stop(_):
        if len(paper_bench.seen) == 5:
            raise Stopped("stopped", signal_number=2)

    paper_bench.before = stop
    with pytest.raises(Stopped):
        search(recipe, StudyDir(tmp_path), confirms=True)
    search(recipe, StudyDir(tmp_path), confirms=True)
    made = len(paper_bench.seen)
    assert made == 2 + 6 + 1
    again = search(recipe, StudyDir(tmp_path), confirms=True)
    assert len(paper_bench.seen) == made
    assert None not in again.confirmation.best + again.confirmation.began_with


def test_a_seed_with_which_a_training_was_given_up_does_not_count(make_recipe, paper_bench, tmp_path):
    from edgetune.errors import DivergedError

    def fail(recipe):
        if recipe.train.seed == 2 and recipe.train.learning_rate != 0.1:
            raise DivergedError("nan")

    paper_bench.before = fail
    recipe = make_recipe("tune.trials=6", "tune.seeds=2", "train.learning_rate=0.1")
    confirmation = search(recipe, StudyDir(tmp_path / "study"), confirms=True).confirmation
    assert confirmation.best[1] is None
    assert confirmation.effect.seeds == 1
    assert confirmation.effect.low is None


def test_an_effect_is_the_mean_difference_with_students_interval():
    # Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027.
    effect = paired_effect([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], is_loss=False)
    assert (effect.mean, effect.seeds, effect.deviation) == (2.0, 3, 1.0)
    assert effect.high == pytest.approx(2 + 4.3027 / 3**0.5, rel=1e-4)
    assert not effect.is_sure
    assert paired_effect([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], is_loss=True).mean == -2.0
    assert paired_effect([1.0, 1.1], [0.0, 0.1], is_loss=False).is_sure


def test_noise_is_what_seeds_alone_change():
    assert noise([[1.0, 3.0], [10.0, 12.0]]) == pytest.approx(2**0.5)
    assert noise([[1.0], [2.0]]) is None


def test_values_are_written_in_their_lines_and_comments_stay():
    changed = with_values_in(
        TEXT, {"train.epochs": 3.0, LR: 2e-4, "train.warmup_ratio": 0.1, "lora.r": 8, "model.base": "c"}
    )
    assert changed.splitlines() == [
        "# About this recipe.",
        "[model]",
        'base = "c"  # a comment',
        "[data]",
        'train = "x"',
        "",
        "[train]",
        "epochs = 3.0      # two",
        "learning_rate=0.0002",
        "# the end",
        "warmup_ratio = 0.1",
        "",
        "[lora]",
        "r = 8",
    ]


def test_a_recipe_is_changed_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(TEXT)
    apply_values(path, {"lora.target_modules": ["q_proj", "v_proj"], "train.epochs": 1.5})
    assert load_recipe(path).lora.target_modules == ("q_proj", "v_proj")
    assert load_recipe(path).train.epochs == 1.5
    odd = TEXT.replace("[train]\nepochs = 2      # two\nlearning_rate=1e-3\n", "[lora]\ntarget_modules = [\n'a',\n]\n")
    path.write_text(odd)
    with pytest.raises(RunError, match=r"take best\.toml"):
        apply_values(path, {"lora.target_modules": ["q_proj"]})
    assert path.read_text() == odd
