"""Overfitting: what is told from noise, what is raised, and that a killed run goes on the same way."""

from __future__ import annotations

import itertools

import pytest

from edgetune.errors import RecipeError
from edgetune.run_dir import RunDir
from edgetune.train import fit, generation
from edgetune.train.events import read_events
from edgetune.train.fused import dropout_of
from edgetune.train.loop import train
from edgetune.train.overfitting import Overfitting, after_evaluation, raised


def follow(*losses):
    """The steps of findings in pairs (training loss, eval loss)."""
    known = Overfitting()
    for step, (train_loss, eval_loss) in enumerate(losses, 1):
        known = after_evaluation(known, step, train_loss=train_loss, eval_loss=eval_loss)
    return [finding.step for finding in known.findings]


def test_a_gap_that_opens_twice_in_a_row_is_overfitting():
    assert follow((3.0, 2.0), (1.0, 1.0), (0.5, 1.1), (0.3, 1.3)) == [4]


def test_it_is_told_again_after_two_more():
    assert follow((1.0, 1.0), (0.9, 1.1), (0.8, 1.2), (0.7, 1.3), (0.6, 1.4), (0.5, 1.5)) == [3, 5]


@pytest.mark.parametrize(
    "losses",
    [
        [(1.0, 1.0), (0.9, 1.01), (0.8, 1.015), (0.7, 1.01)],  # flat
        [(1.0, 1.0), (1.2, 1.3), (1.3, 1.4), (1.4, 1.5)],  # a divergence: both rise
        [(1.0, 1.0), (0.9, 1.1), (0.8, 0.9), (0.7, 1.0), (0.6, 0.8)],  # noise: better again each time
        [(0.2, 1.0), (0.19, 0.9), (0.18, 0.8)],  # the eval rows are harder from the start
    ],
)
def test_what_is_no_overfitting(losses):
    assert follow(*losses) == []


def found(**holds):
    known = Overfitting()
    for step, eval_loss in enumerate((1.0, 1.1, 1.2)):
        known = after_evaluation(known, step, train_loss=1.0 - step / 10, eval_loss=eval_loss)
    return {"known": known, "dropout": 0.0, "weight_decay": 0.0, **holds}


def test_dropout_goes_up_by_tenths_to_a_half_and_decay_threefold_from_a_hundredth():
    assert [raised(action="dropout", **found(dropout=at)).dropout for at in (0.0, 0.05, 0.45)] == [0.1, 0.15, 0.5]
    decays = [raised(action="weight_decay", **found(weight_decay=at)).weight_decay for at in (0.0, 0.1, 0.9)]
    assert decays == [0.01, 0.3, 1.0]


@pytest.mark.parametrize(
    ("action", "holds"), [("warn", {}), ("dropout", {"dropout": 0.5}), ("dropout", {"dropout": 0.9})]
)
def test_nothing_is_raised_where_that_is_not_asked_for_or_it_is_at_its_most(action, holds):
    known = raised(action=action, **found(**holds))
    assert (known.dropout, known.weight_decay, known.findings[-1].raised) == (None, None, None)


KEYS = ("train.max_steps=12", "train.schedule=constant", "train.warmup_ratio=0", "train.checkpoint_steps=3")


def overfit(monkeypatch):
    """The eval loss rises from the second evaluation on, whatever is trained."""
    monkeypatch.setattr(generation, "evaluate_loss", lambda *_, **__: (next(losses), 1))
    losses = itertools.count(1.0, 0.2)
    return losses


def spy(monkeypatch, seen):
    make = fit.make_step

    def look(training, *rest):
        decays = {group["weight_decay"] for group in training.optimizer.param_groups}
        seen.append((dropout_of(training.model), sorted(decays)))
        return make(training, *rest)

    monkeypatch.setattr(fit, "make_step", look)


@pytest.mark.parametrize("start", ["0.0", "0.1"])
def test_dropout_is_raised_in_the_training_itself(make_recipe, tmp_path, monkeypatch, start):
    seen, told = [], []
    overfit(monkeypatch)
    spy(monkeypatch, seen)
    recipe = make_recipe(
        *KEYS, f"lora.dropout={start}", "train.on_overfitting=dropout", "train.gradient_checkpointing=true"
    )
    result = train(recipe, RunDir(tmp_path / "r"), progress=told.append)
    first = float(start)
    assert [rate for rate, _ in seen] == pytest.approx([first] * 6 + [first + 0.1] * 4 + [first + 0.2] * 2)
    assert [finding["step"] for finding in result.overfitting] == [6, 10]
    events = [event["overfitting"] for event in read_events(tmp_path / "r" / "events.jsonl") if "overfitting" in event]
    assert events == result.overfitting
    text = next(str(event["message"]) for event in told if "overfitting" in str(event.get("message")))
    assert text.startswith("step 6: overfitting: the eval loss has risen from 1.0000 to 1.4000 while the training loss")
    assert text.endswith(f"dropout is {first + 0.1:g} from here")


def test_weight_decay_is_raised_but_not_on_magnitudes(make_recipe, tmp_path, monkeypatch):
    seen = []
    overfit(monkeypatch)
    spy(monkeypatch, seen)
    train(make_recipe(*KEYS, "lora.use_dora=true", "train.on_overfitting=weight_decay"), RunDir(tmp_path / "r"))
    assert [decays for _, decays in seen] == [[0.0]] * 6 + [[0.0, 0.01]] * 4 + [[0.0, 0.03]] * 2


def test_a_warning_changes_nothing_and_names_the_adapter_that_is_kept(make_recipe, tmp_path, monkeypatch):
    seen, told = [], []
    overfit(monkeypatch)
    spy(monkeypatch, seen)
    result = train(make_recipe(*KEYS), RunDir(tmp_path / "r"), progress=told.append)
    assert seen == [(0.1, [0.0])] * 12
    assert [finding["raised"] for finding in result.overfitting] == [None, None]
    assert any(str(event.get("message", "")).endswith("; step 2 is kept") for event in told)


@pytest.mark.parametrize(
    ("action", "killed_in"),
    [
        ("dropout", 8),
        ("weight_decay", 11),
        pytest.param("dropout", 11, marks=pytest.mark.slow),
        pytest.param("weight_decay", 8, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_dies_after_something_was_raised_ends_with_the_same_bytes(
    make_recipe, tmp_path, monkeypatch, action, killed_in
):
    recipe, plain, runs = (
        make_recipe(*KEYS, "lora.dropout=0.0", f"train.on_overfitting={action}"),
        generation.evaluate_loss,
        {},
    )

    def worse(model, *args, **options):
        """The true loss, and the higher the more was trained."""
        total, count = plain(model, *args, **options)
        return total * next(factors), count

    monkeypatch.setattr(generation, "evaluate_loss", worse)
    for name in ("whole", "broken"):
        factors, run_dir = itertools.count(1, 3), RunDir(tmp_path / name)
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
            seen_evaluations = 3 if killed_in == 8 else 4
            factors = itertools.count(1 + 3 * seen_evaluations, 3)
        train(recipe, run_dir)
        runs[name] = [event["loss"] for event in read_events(run_dir.events) if "loss" in event]
    assert runs["broken"] == runs["whole"]


@pytest.mark.parametrize("value", ["stop", "true", "1"])
def test_another_word_is_refused(make_recipe, value):
    with pytest.raises(RecipeError, match=r"train\.on_overfitting"):
        make_recipe(f"train.on_overfitting={value}")
