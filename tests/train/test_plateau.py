"""schedule = "plateau": when the learning rate falls, how far, and that a killed run goes on the same way."""

from __future__ import annotations

import itertools

import pytest

from edgetune.run_dir import RunDir
from edgetune.train import fit, generation
from edgetune.train.events import read_events
from edgetune.train.loop import train
from edgetune.train.plateau import Plateau, after_evaluation


def follow(losses, *, patience=1, least=0.0):
    shares, plateau = [], Plateau()
    for loss in losses:
        plateau = after_evaluation(plateau, loss, patience=patience, least=least)
        shares.append(plateau.share)
    return shares


def test_the_share_is_cut_at_each_evaluation_without_a_better_loss():
    assert follow([3.0, 2.0, 2.0, 2.5, 1.0, 1.5]) == [1.0, 1.0, 0.5, 0.25, 0.25, 0.125]


def test_patience_counts_anew_after_a_cut_and_after_a_better_loss():
    assert follow([2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], patience=2) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


def test_a_loss_that_is_lower_by_less_than_a_thousandth_is_no_better():
    assert follow([2.0, 1.9985, 1.99]) == [1.0, 0.5, 0.5]


def test_the_share_stops_at_the_least_and_no_more_cuts_are_counted():
    plateau = Plateau()
    for _ in range(9):
        plateau = after_evaluation(plateau, 1.0, patience=1, least=0.2)
    assert (plateau.share, plateau.cuts) == (0.2, 3)


KEYS = ("train.schedule=plateau", "train.max_steps=12", "train.warmup_ratio=0", "train.min_learning_rate_ratio=0.2")


def test_a_run_is_trained_on_with_the_lowered_rate_and_says_so(make_recipe, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.5, 1.0])
    monkeypatch.setattr(generation, "evaluate_loss", lambda *_, **__: (next(losses), 1))
    run_dir, told = RunDir(tmp_path / "r"), []
    result = train(make_recipe(*KEYS), run_dir, progress=told.append)
    events = read_events(run_dir.events)
    rates = [event["learning_rate"] for event in events if "loss" in event]
    assert rates == pytest.approx([0.01] * 6 + [0.005] * 2 + [0.0025] * 2 + [0.002] * 2)
    cuts = [(event["step"], event["cut_to"]) for event in events if "cut_to" in event]
    assert cuts == [(6, 0.005), (8, 0.0025), (10, 0.002)]
    assert result.rate_cuts == 3
    assert {
        "stage": "train",
        "message": "step 6: the eval loss no longer falls; the learning rate is 5.00e-03 from here",
    } in told


@pytest.mark.parametrize("killed_in", [8, pytest.param(11, marks=pytest.mark.slow)])
def test_a_run_that_dies_after_a_cut_ends_with_the_same_bytes(make_recipe, tmp_path, monkeypatch, killed_in):
    recipe = make_recipe(*KEYS, "train.checkpoint_steps=3")
    plain, runs = generation.evaluate_loss, {}

    def worse(model, *args, **options):
        """The true loss, and from the second on as if it never fell: every other one is higher."""
        total, count = plain(model, *args, **options)
        return (total * (10 if next(calls) % 2 else 1), count)

    monkeypatch.setattr(generation, "evaluate_loss", worse)
    for name in ("whole", "broken"):
        calls, run_dir = itertools.count(), RunDir(tmp_path / name)
        if name == "broken":
            with monkeypatch.context() as patch:
                steps, make = itertools.count(1), fit.make_step

                def die(*args, steps=steps, make=make):
                    if next(steps) == killed_in:
                        raise KeyboardInterrupt
                    return make(*args)

                patch.setattr(fit, "make_step", die)
                with pytest.raises(KeyboardInterrupt):
                    train(recipe, run_dir)
            calls = itertools.count((killed_in - 1) // 3 * 3 // 2)  # evaluations before the checkpoint it goes on from
        result = train(recipe, run_dir)
        events = [
            {key: value for key, value in event.items() if key not in ("tokens_per_s", "memory_bytes")}
            for event in read_events(run_dir.events)
        ]
        runs[name] = (result.rate_cuts, events, (run_dir.adapter / "adapter_model.safetensors").read_bytes())
    assert runs["whole"][0] >= 2
    assert runs["broken"] == runs["whole"]
