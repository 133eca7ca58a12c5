"""Values that change while it trains, and trainings that begin at another's checkpoint, as those of a population do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from edgetune.errors import RecipeError, RunError
from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir
from edgetune.train import checkpoint
from edgetune.train.events import read_events
from edgetune.train.fused import dropout_of
from edgetune.train.loop import train

CHANGE = '{ after_step = 2, "train.learning_rate" = 0.001, "lora.dropout" = 0.3, "train.weight_decay" = 0.2 }'


def weights(run_dir):
    return load_file(run_dir.adapter / "adapter_model.safetensors")


def rates(run_dir):
    return [event["learning_rate"] for event in read_events(run_dir.events) if "learning_rate" in event]


def paused(recipe, folder, **more):
    run_dir = RunDir(folder)
    return run_dir, train(recipe, run_dir, **more)


def test_a_value_holds_from_the_step_after_it_changed(make_recipe, tmp_path, monkeypatch):
    seen = []

    def watch(target, name):
        original = getattr(target, name)

        def look(training, *arguments):
            seen.append((dropout_of(training.model), training.optimizer.param_groups[0]["weight_decay"]))
            return original(training, *arguments)

        monkeypatch.setattr(target, name, look)

    from edgetune.train import fit

    watch(fit, "make_step")
    recipe = make_recipe(
        "train.max_steps=4", "train.schedule=constant", "train.warmup_ratio=0", f"train.changes=[{CHANGE}]"
    )
    run_dir, _ = paused(recipe, tmp_path / "r")
    assert seen == [(0.1, 0.0), (0.1, 0.0), (0.3, 0.2), (0.3, 0.2)]
    assert rates(run_dir) == [0.01, 0.01, 0.001, 0.001]


def test_a_copy_with_other_values_is_what_its_recipe_trains_to_in_one_go(make_recipe, tmp_path):
    base = ("train.max_steps=6", "train.eval_steps=2")
    first, made = paused(make_recipe(*base, "train.changes=[]"), tmp_path / "first", evaluations=1)
    assert (made.steps, first.adapter.is_dir(), "train" in first.read().get("stages", {})) == (2, True, False)
    changed = make_recipe(*base, f"train.changes=[{CHANGE}]")
    second, made = paused(changed, tmp_path / "second", start=first, evaluations=2)
    assert made.steps == 4
    third, made = paused(changed, tmp_path / "third", start=second)
    whole, _ = paused(changed, tmp_path / "whole")
    assert (made.steps, rates(third)) == (6, rates(whole))
    ours, theirs = weights(third), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert load_recipe(third.recipe).train.changes == changed.train.changes
    assert "train" in third.read()["stages"]


def test_a_pause_that_is_asked_for_again_changes_nothing(make_recipe, tmp_path):
    recipe = make_recipe("train.max_steps=6", "train.eval_steps=2")
    run_dir, made = paused(recipe, tmp_path / "r", evaluations=1)
    again = train(recipe, run_dir, evaluations=1)
    assert (again.steps, again.tokens) == (made.steps, made.tokens) == (2, made.tokens)
    assert [folder.name for folder in checkpoint.find(run_dir)] == ["step-00000002"]


def test_there_is_nothing_to_begin_at_in_a_folder_without_a_checkpoint(make_recipe, tmp_path):
    with pytest.raises(RunError, match="holds no checkpoint to go on from"):
        train(make_recipe(), RunDir(tmp_path / "r"), start=RunDir(tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ('[{ "train.learning_rate" = 0.1 }]', "after_step = None is not a step"),
        ('[{ after_step = 0, "train.learning_rate" = 0.1 }]', "after_step = 0 is not a step"),
        ("[{ after_step = 3 }]", "nothing changes after step 3"),
        ('[{ after_step = 3, "lora.r" = 2 }]', "'lora.r' cannot change while it trains"),
        ('[{ after_step = 3, "train.learning_rate" = "auto" }]', "is not a number"),
        ('[{ after_step = 3, "lora.dropout" = 2 }]', "must be at most 0.95"),
        (
            '[{ after_step = 3, "lora.dropout" = 0 }, { after_step = 3, "lora.dropout" = 0.1 }]',
            "put them in order, each step once",
        ),
        ("[3]", "is not a list of a table"),
    ],
)
def test_changes_that_cannot_be_are_one_line(make_recipe, changes, complaint):
    with pytest.raises(RecipeError) as refusal:
        make_recipe(f"train.changes={changes}")
    assert complaint in str(refusal.value)
    assert "train.changes" in str(refusal.value)
    assert "\n" not in str(refusal.value)
