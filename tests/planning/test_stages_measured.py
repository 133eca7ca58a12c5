"""What plan says of each stage against a run that is measured, in a fresh process: python -m pytest -m slow."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import in_child, minilm
from edgetune.assets import nano

WITHIN = 0.10
"""Of the measured memory."""
FEW = (
    "data.max_train_rows=128",
    "train.max_steps=6",
    "evaluate.max_rows=16",
    "export.calibration_rows=64",
    "export.repair_steps=4",
)


def measured(recipe: Path, folder: Path, *settings: str) -> Mapping[str, Mapping[str, Any]]:
    stages: dict[str, Any] = in_child("benchmarks.stages_child", recipe, folder / "run", *settings)["stages"]
    assert all(row["planned_mib"] and row["planned_seconds"] for row in stages.values())
    return {name: row for name, row in stages.items() if row["mib"] is not None}


def assert_near(stages: Mapping[str, Mapping[str, Any]]) -> None:
    """Each stage, and so the run's peak."""
    far = {
        name: (round(row["planned_mib"]), round(row["mib"]))
        for name, row in stages.items()
        if abs(row["planned_mib"] / row["mib"] - 1) > WITHIN
    }
    assert not far


@pytest.mark.slow
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_each_stage_of_a_decoder_s_run_takes_what_was_planned(tmp_path: Path, is_checkpointed: bool) -> None:
    checkpointing = f"train.gradient_checkpointing={json.dumps(is_checkpointed)}"
    recipe = Path(nano.__file__).parents[3] / "recipes" / "quickstart.toml"
    stages = measured(recipe, tmp_path, *FEW, checkpointing)
    assert set(stages) >= {"train", "evaluations", "repair", "verification"}
    assert_near(stages)


@pytest.mark.slow
def test_each_stage_of_a_classifier_s_run_takes_what_was_planned(data_dir: Path, tmp_path: Path) -> None:
    recipe, rows = tmp_path / "labels.toml", tmp_path / "rows.csv"
    with (data_dir / "banking77" / "train.csv").open(encoding="utf-8") as file:
        kept = list(csv.reader(file))
    with rows.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([kept[0], *kept[1::40]])
    recipe.write_text(
        f'[model]\nbase = {json.dumps(str(minilm()))}\ntask = "classification"\n[data]\n'
        f"train = {json.dumps(str(rows))}\neval = {json.dumps(str(rows))}\nmax_seq_len = 64\n"
    )
    stages = dict(measured(recipe, tmp_path, "train.max_steps=4", "export.min_gain_kept=0", "export.max_kl=10"))
    train = stages.pop("train")  # planned for batches that all have the longest row
    assert 0.95 * train["mib"] <= train["planned_mib"] <= 1.5 * train["mib"]
    assert_near(stages)
