"""benchmarks/stages.py on toys: what each stage of a run takes, and that a case is written once it is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import stages
from benchmarks.memory_tables import stages_table
from benchmarks.stages import Case, random_base
from benchmarks.stages_child import STAGES, measure, stage_of
from edgetune.files import read_json
from edgetune.model.base import load_tokenizer
from edgetune.recipe import load_recipe, parse_recipe
from edgetune.run_dir import RunDir


@pytest.mark.parametrize(
    ("event", "stage"),
    [
        ({"stage": "train", "step": 3}, "train"),
        ({"stage": "evaluate bundle", "step": 1}, "evaluations"),
        ({"stage": "export", "message": "putting the weights on the int4 grid"}, "calibration"),
        ({"stage": "repair", "step": 1}, "repair"),
        ({"stage": "export", "message": "building int4"}, "graph"),
        ({"stage": "export", "message": "verifying on 24 prompts"}, "verification"),
        ({"stage": "export", "message": "the fine-tune had not converged"}, None),
        ({"stage": "plan", "message": "about 1 GiB"}, None),
    ],
)
def test_an_event_belongs_to_a_stage(event, stage):
    assert stage_of(event) == stage


def test_every_stage_of_a_run_is_measured(tiny_recipe, tmp_path):
    text = tiny_recipe(
        train={"max_steps": 4},
        export={"calibration_rows": 8, "repair_steps": 2, "min_gain_kept": 0},
        evaluate={"metric": "loss", "max_rows": 4},
    )
    recipe = parse_recipe(text, source="tiny", name="tiny")
    found = measure(recipe, RunDir(tmp_path / "run"))
    assert tuple(found["stages"]) == STAGES
    assert all(row["seconds"] > 0 for row in found["stages"].values())
    assert all(row["mib"] > 50 for name, row in found["stages"].items() if row["mib"] is not None)
    summary = read_json(tmp_path / "run/results/summary.json")
    rows = found["stages"]
    assert rows["train"]["seconds"] == summary["train"]["train_s"]
    assert rows["train"]["planned_mib"] == pytest.approx(summary["estimate"]["peak_bytes"] / 2**20)
    parts = sum(rows[name]["seconds"] for name in ("calibration", "repair", "graph", "verification"))
    assert parts == pytest.approx(summary["stage_s"]["export"])


def test_cases_that_are_there_stay_and_each_is_written_at_once(tmp_path, monkeypatch):
    seen = []

    def child(_, recipe, folder, *settings):
        seen.append((Path(recipe).name, Path(folder).parent.name, settings))
        if len(seen) == 2:
            assert list(read_json(out)["cases"]) == ["6 M"]
        row = {"seconds": 1.5, "mib": 100.0, "planned_seconds": None, "planned_mib": 90.0}
        return {"stages": {"train": row}, "parameters": 6_000_000}

    out = tmp_path / "stages.json"
    cases = {
        "6 M": Case(Path("a.toml")),
        "135 M": Case(Path("b.toml"), ("x=1",), lambda folder: folder, "rounded once"),
    }
    monkeypatch.setattr(stages, "in_child", child)
    monkeypatch.setattr(stages, "CASES", cases)
    arguments = ["--work", str(tmp_path / "work"), "--out", str(out)]
    for more in ([], [], ["--case", "6 M"]):
        done = CliRunner().invoke(stages.main, [*arguments, *more])
        assert done.exit_code == 0, done.output
    base = f'model.base="{tmp_path / "work" / "135-M" / "base"}"'
    assert seen == [("a.toml", "6-M", ()), ("b.toml", "135-M", (base, "x=1")), ("a.toml", "6-M", ())]
    table = stages_table(read_json(out))
    assert "| 6 M | train | 2 | - | 100 | 90 |" in table
    assert "135 M (6 million parameters): b.toml, x=1; rounded once; load average" in table


def test_random_weights_have_the_shape_and_a_tokenizer(tmp_path):
    shape = {
        **stages.HALF_BILLION,
        "vocab_size": 4096,
        "hidden_size": 28,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
    }
    folder = random_base(tmp_path / "base", shape)
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"
    assert load_tokenizer(folder).chat_template
    assert len(load_tokenizer(folder)) <= 4096


@pytest.mark.parametrize("name", list(stages.CASES))
def test_the_settings_of_each_case_are_those_of_a_recipe(name):
    case = stages.CASES[name]
    assert load_recipe(case.recipe, case.settings).model.task == "generation"
