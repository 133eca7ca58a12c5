"""bundle/survival.py: the verdict on a bundle, from the answers of base, fine-tune and bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.bundle.survival import cures, judge
from edgetune.errors import CheckError
from edgetune.files import read_json, write_json
from edgetune.recipe import DataTable, ExportTable, ModelTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import open_bundle, write_manifest
from edgetune.verify_run import refuse_lost_gain

ROWS = 200
RECIPE = Recipe(model=ModelTable(base="base"), data=DataTable(train="rows.jsonl"), name="lamp", export=ExportTable())
Judged = Callable[..., dict[str, Any]]


def answers(right: set[int], nats: float) -> str:
    """Of ROWS rows, those of `right` right, each of four tokens with a loss."""
    rows = [
        {"answer": str(row), "score": float(row in right), "loss_sum": 4 * nats, "trained_tokens": 4}
        for row in range(ROWS)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run_dir(tmp_path: Path, tiny_bundle: Path) -> RunDir:
    """A run folder with a bundle whose layers nothing is told of, for it is one of floats."""
    run_dir = RunDir(tmp_path / "run")
    shutil.copytree(tiny_bundle, run_dir.bundle)
    (run_dir.path / "merged").mkdir()
    run_dir.results.mkdir()
    return run_dir


@pytest.fixture
def judged(run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """A function: rows that base, fine-tune and bundle have right, losses and divergence -> the verdict."""
    monkeypatch.setattr("edgetune.bundle.generation.layer_changes", lambda *_: iter(()))

    def ask(
        right: set[int],
        *,
        base: set[int] = frozenset(),  # type: ignore[assignment]
        tuned: set[int] = frozenset(range(100)),  # type: ignore[assignment]
        nats: tuple[float, float, float] = (2.0, 0.5, 0.5),
        kl: float | None = 0.01,
        recipe: Recipe = RECIPE,
        is_accepted: bool = False,
    ) -> dict[str, Any]:
        for stage, found, loss in zip(("base", "tuned", "bundle"), (base, tuned, right), nats, strict=True):
            (run_dir.results / f"{stage}-answers.jsonl").write_text(answers(found, loss), encoding="utf-8")
            distance = None if kl is None else {"kl": kl, "agreement": 0.99, "tokens": 800}
            write_json(run_dir.results / f"{stage}.json", {"distance": distance})
        return judge(recipe, run_dir, tmp_path, run_dir.results, is_accepted=is_accepted)

    return ask


def test_a_bundle_that_is_the_fine_tune_passes_in_words_and_numbers(judged: Judged, run_dir: RunDir) -> None:
    found = judged(set(range(99)))
    assert (found["passed"], found["kept_enough"], found["is_close"], found["accepted"]) == (True, True, True, False)
    assert found["verdict"].startswith("99.0% of the gain in score kept (")
    assert "100.0% of the gain in loss kept (100.0% to 100.0%), on 200 rows; at least 97.0%" in found["verdict"]
    assert "0.0100 nats a token from the fine-tune, at most 0.1 allowed" in found["verdict"]
    assert found["verdict"].endswith("0.5% of the rows changed, at most 10% allowed")
    assert "more than" not in found["verdict"]
    verified = open_bundle(run_dir.bundle).verified
    assert verified["passed"] is True
    assert verified["gain_kept"]["closeness"] == {**found["closeness"], "interval": [*found["closeness"]["interval"]]}
    written = read_json(run_dir.results / "survival.json")
    assert {name: written[name] for name in found} == json.loads(json.dumps(found))
    refuse_lost_gain(run_dir, found)


REFUSED = {
    "too little gain in score": ({"right": set(range(90))}, (False, True), "90.0% of the gain in score kept"),
    "too little gain in loss": (
        {"right": set(range(100)), "nats": (2.0, 0.5, 0.8)},
        (False, True),
        "80.0% of the gain in loss kept",
    ),
    "too much gain": (
        {"right": set(range(100)), "nats": (2.0, 0.5, 0.05)},
        (False, True),
        "130.0% of the gain in loss kept (130.0% to 130.0%), more than the 125% allowed",
    ),
    "too far": (
        {"right": set(range(100)), "kl": 0.2},
        (True, False),
        "0.2000 nats a token from the fine-tune, more than the 0.1 allowed",
    ),
    "too many rows changed": (
        {"right": set(range(40, 140))},
        (True, False),
        "40.0% of the rows changed, more than the 10% allowed",
    ),
}


@pytest.mark.parametrize(("asked", "because", "words"), REFUSED.values(), ids=list(REFUSED))
def test_each_reason_refuses_alone_and_is_said(
    asked: dict[str, Any], because: tuple[bool, bool], words: str, judged: Judged, run_dir: RunDir
) -> None:
    found = judged(**asked)
    assert (found["kept_enough"], found["is_close"], found["passed"]) == (*because, False)
    assert words in found["verdict"]
    assert open_bundle(run_dir.bundle).verified["passed"] is False
    with pytest.raises(CheckError, match=r"edgetune verify .* --force") as refusal:
        refuse_lost_gain(run_dir, found)
    assert found["verdict"] in str(refusal.value)
    assert found["cure"] in str(refusal.value)


@pytest.mark.parametrize("asked", [asked for asked, _, _ in REFUSED.values()], ids=list(REFUSED))
def test_force_accepts_it_whatever_the_reason(asked: dict[str, Any], judged: Judged, run_dir: RunDir) -> None:
    found = judged(**asked, is_accepted=True)
    assert (found["passed"], found["accepted"]) == (True, True)
    verified = open_bundle(run_dir.bundle).verified
    assert (verified["passed"], verified["gain_kept"]["accepted"]) == (True, True)
    refuse_lost_gain(run_dir, found)


def test_what_is_sound_need_not_be_accepted(judged: Judged) -> None:
    assert judged(set(range(100)), is_accepted=True)["accepted"] is False


def test_limits_are_those_of_the_recipe(judged: Judged) -> None:
    wide = ExportTable(min_gain_kept=0.5, max_kl=0.5, max_changed_rows=0.5)
    assert judged(set(range(40, 120)), kl=0.2, recipe=dataclasses.replace(RECIPE, export=wide))["passed"]


def test_without_a_gain_a_bundle_passes_unless_it_is_worse_than_both(judged: Judged) -> None:
    same = set(range(100))
    found = judged(same, base=same, nats=(0.5, 0.5, 0.5))
    assert found["passed"]
    assert "in score these rows show no gain of fine-tuning of which a share could be told" in found["verdict"]
    worse = judged(same, base=same, nats=(0.5, 0.5, 0.9))
    assert not worse["passed"]
    assert "in loss these rows show no gain" in worse["verdict"]
    assert "and the bundle is worse than base and fine-tune" in worse["verdict"]


def test_a_fine_tune_that_had_not_converged_is_to_be_trained_longer_first(judged: Judged, run_dir: RunDir) -> None:
    plain = judged(set(range(90)))["cure"]
    assert plain.startswith("try edgetune run RECIPE --set export.repair_steps=400 or --set ")
    assert 'export.precision="int8"' in plain
    bundle = open_bundle(run_dir.bundle)
    write_manifest(dataclasses.replace(bundle, provenance={**bundle.provenance, "repair": {"epochs_more": 1.0}}))
    longer = judged(set(range(90)))["cure"]
    assert longer.startswith("try edgetune run RECIPE --set train.epochs=3 or --set export.repair_steps=400")
    assert longer == f"try {cures(RECIPE, open_bundle(run_dir.bundle), is_far=False)}"


def test_what_has_become_another_model_is_not_to_be_repaired_more(judged: Judged) -> None:
    """The gain is kept and the distributions are far: more steps on labels would take it further."""
    found = judged(set(range(100)), kl=0.2)
    assert not found["passed"]
    assert found["cure"].startswith('try edgetune run RECIPE --set export.repair_on="teacher"')
    assert "repair_steps" not in found["cure"]
