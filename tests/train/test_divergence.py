"""Divergence: what is one, what a restart does, and that a process may die at any moment of it."""

from __future__ import annotations

import json

import pytest

from edgetune.errors import DivergedError
from edgetune.hashes import hash_tree
from edgetune.run_dir import RunDir
from edgetune.train import checkpoint, fit, restart
from edgetune.train.divergence import Diverged, Divergence, after_evaluation
from edgetune.train.events import read_events
from edgetune.train.loop import train


def follow(*losses):
    """The step of the divergence in pairs (training loss, eval loss); None if there is none."""
    divergence, best = Divergence(), float("inf")
    for step, (train_loss, eval_loss) in enumerate(losses, 1):
        best = min(best, eval_loss)
        try:
            divergence = after_evaluation(
                divergence, step, train_loss=train_loss, eval_loss=eval_loss, best_eval_loss=best
            )
        except Diverged as error:
            return error.step
    return None


def test_two_evaluations_far_above_the_best_are_a_divergence():
    assert follow((3.0, 2.0), (1.0, 1.0), (2.5, 3.0), (3.0, 4.0), (3.0, 4.0)) == 4


def test_one_that_comes_back_is_none():
    assert follow((3.0, 2.0), (1.0, 1.0), (2.5, 3.0), (1.0, 1.0), (2.5, 3.0), (1.0, 1.0)) is None


def test_half_of_what_was_learned_being_gone_is_far_however_high_the_loss_began():
    assert follow((6.7, 6.6), (5.6, 5.5), (6.2, 6.2), (6.2, 6.2)) == 4


def test_a_small_loss_is_not_far_until_a_tenth_of_a_nat():
    assert follow((0.5, 0.4), (0.03, 0.03), (0.08, 0.1), (0.09, 0.11)) is None


def test_overfitting_is_no_divergence():
    assert follow((3.0, 2.0), (1.0, 1.0), (0.5, 1.5), (0.2, 2.2), (0.1, 3.0), (0.1, 3.5)) is None


def test_a_loss_well_above_the_untrained_one_is_far_though_no_evaluation_was_better():
    divergence, losses = Divergence(start_loss=2.0), {"train_loss": 6.0, "eval_loss": 7.0, "best_eval_loss": 7.0}
    divergence = after_evaluation(divergence, 5, **losses)
    assert (divergence.far_evaluations, divergence.sound_step) == (1, 0)
    with pytest.raises(Diverged):
        after_evaluation(divergence, 10, **losses)


def test_training_rows_harder_than_the_eval_rows_are_no_divergence():
    assert follow((3.0, 0.9), (1.0, 0.2), (0.95, 0.5), (0.9, 0.6), (0.9, 0.7)) is None


KEYS = ("train.max_steps=10", "train.warmup_ratio=0", "train.schedule=constant", "train.eval_steps=2")


def break_at(monkeypatch, step, *, above):
    """The loss is no number at that step of a training whose learning rate is above one."""
    make = fit.make_step

    def fail(training, position, rows, learning_rate):
        if position.step + 1 == step and learning_rate > above:
            raise Diverged(step, "the loss is nan")
        return make(training, position, rows, learning_rate)

    monkeypatch.setattr(fit, "make_step", fail)


def facts(run_dir):
    events = [
        {key: value for key, value in event.items() if key not in ("tokens_per_s", "memory_bytes")}
        for event in read_events(run_dir.events)
    ]
    return events, (run_dir.adapter / "adapter_model.safetensors").read_bytes()


def test_a_training_goes_on_from_its_last_sound_checkpoint_at_a_lower_rate_and_records_it(
    make_recipe, tmp_path, monkeypatch
):
    smooth = train(make_recipe(*KEYS), RunDir(tmp_path / "smooth"))
    break_at(monkeypatch, 8, above=0.005)
    run_dir, told = RunDir(tmp_path / "r"), []
    result = train(make_recipe(*KEYS), run_dir, progress=told.append)
    record = {"diverged_step": 8, "reason": "the loss is nan", "step": 6, "learning_rate": pytest.approx(0.003)}
    assert result.restarts == [record]
    assert json.loads((run_dir.results / "train.json").read_text())["restarts"] == [record]
    events = read_events(run_dir.events)
    assert [event["diverged"] for event in events if "diverged" in event] == [record]
    rates = [event["learning_rate"] for event in events if "loss" in event]
    assert rates == pytest.approx([0.01] * 6 + [0.003] * 4)
    assert [event["step"] for event in events if "loss" in event] == list(range(1, 11))
    messages = [event["message"] for event in told if "message" in event]
    assert "step 8: the loss is nan; goes on after step 6 at 3.00e-03" in messages
    assert sum(1 for event in told if event.get("step") == 7) == 2
    assert result.tokens > smooth.tokens  # the lost step is not forgotten


def test_before_the_first_evaluation_a_training_begins_anew_as_a_slower_one_would(make_recipe, tmp_path, monkeypatch):
    slow = make_recipe(*KEYS, "train.learning_rate=0.003", "train.checkpoint_steps=1")
    train(slow, RunDir(tmp_path / "slow"))
    break_at(monkeypatch, 2, above=0.005)
    result = train(make_recipe(*KEYS, "train.checkpoint_steps=1"), RunDir(tmp_path / "r"))
    assert [item["step"] for item in result.restarts] == [0]
    assert facts(RunDir(tmp_path / "r"))[1] == facts(RunDir(tmp_path / "slow"))[1]


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("adamw_8bit", marks=pytest.mark.slow)])
def test_real_divergence_is_cured_by_a_rate_that_is_low_enough(make_recipe, tmp_path, optimizer):
    keys = ("train.learning_rate=1e12", "train.max_grad_norm=1e30", f"train.optimizer={optimizer}")
    with pytest.raises(DivergedError, match="also after 2 restarts at lower learning rates; lower train"):
        train(make_recipe(*KEYS, *keys), RunDir(tmp_path / "r"))
    run_dir = RunDir(tmp_path / "cured")
    result = train(make_recipe(*KEYS, *keys, "train.divergence_restarts=9"), run_dir)
    places = [(item["diverged_step"], item["step"]) for item in result.restarts]
    assert len(places) > 2
    assert places[-1][1] == 0  # the sound checkpoint did not help: from the start
    assert result.eval_loss < 6.5
    assert [event["step"] for event in read_events(run_dir.events) if "loss" in event] == list(range(1, 11))


def test_without_restarts_the_first_divergence_is_the_end(make_recipe, tmp_path, monkeypatch):
    break_at(monkeypatch, 8, above=0.005)
    with pytest.raises(DivergedError, match=r"^step 8: the loss is nan; the adapter has diverged; lower train"):
        train(make_recipe(*KEYS, "train.divergence_restarts=0"), RunDir(tmp_path / "r"))


def test_a_sound_checkpoint_stays_while_far_ones_are_newer_and_the_best_adapter_with_it(
    make_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgetune.train.generation.evaluate_loss", lambda *_, **__: (next(losses), 1))
    make, plain, seen = fit.make_step, restart.checkpoint.newest, []

    def diverge(training, position, *args):
        loss, *rest = make(training, position, *args)
        return (50.0 if position.step in (2, 3) else loss, *rest)

    def see(run_dir, *args, **options):
        found = plain(run_dir, *args, **options)
        seen.append(([folder.name for folder in checkpoint.find(run_dir)], hash_tree(run_dir.adapter)))
        return found

    losses = iter([3.0, 1.0, 9.0, 9.0])
    recipe = make_recipe("train.checkpoint_steps=1", "train.eval_steps=1", "train.divergence_restarts=1")
    run_dir = RunDir(tmp_path / "r")
    monkeypatch.setattr(fit, "make_step", diverge)
    monkeypatch.setattr(restart.checkpoint, "newest", see)
    monkeypatch.setattr(checkpoint, "KEPT", 1)
    with pytest.raises(StopIteration):
        train(recipe, run_dir)
    assert seen[1:] == [(["step-00000003", "step-00000002"], hash_tree(run_dir.adapter))]
    assert [folder.name for folder in checkpoint.find(run_dir)] == ["step-00000002"]
    state = json.loads((run_dir.checkpoints / "step-00000002/state.json").read_text())["state"]
    assert (state["best_loss"], state["best_step"], len(state["divergence"]["restarts"])) == (1.0, 2, 1)


@pytest.mark.parametrize(
    ("target", "after"),
    [
        ("forget_after", False),
        ("begin_events", True),
        *(
            pytest.param(*where, marks=pytest.mark.slow)
            for where in (("forget_after", True), ("save", False), ("save", True), ("begin_events", False))
        ),
    ],
)
def test_a_process_that_dies_in_a_restart_ends_with_the_same_bytes_and_events(
    make_recipe, tmp_path, monkeypatch, target, after
):
    recipe = make_recipe(*KEYS, "train.checkpoint_steps=3", "lora.dropout=0.1")
    break_at(monkeypatch, 8, above=0.005)
    whole, broken = RunDir(tmp_path / "whole"), RunDir(tmp_path / "broken")
    expected = train(recipe, whole)
    module = restart if target == "begin_events" else restart.checkpoint
    plain = getattr(module, target)

    def die(run_dir, *args, **options):
        is_restart = target != "save" or args[0].divergence.restarts
        if after or not is_restart:
            plain(run_dir, *args, **options)
        if is_restart:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, target, die)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, broken)
    result = train(recipe, broken)
    assert (result.restarts, result.tokens) == (expected.restarts, expected.tokens)
    assert facts(broken) == facts(whole)
