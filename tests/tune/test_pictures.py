"""What a study looks like: its pictures, and its page."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from edgetune.cli import main
from edgetune.errors import RunError
from edgetune.report.write import report
from edgetune.tune.pictures import draw_population
from edgetune.tune.search import search
from edgetune.tune.study import StudyDir

LR = "train.learning_rate"
SPACE = {
    LR: {"low": 1e-4, "high": 0.1, "log": True},
    "lora.r": [2, 4, 8],
    "lora.use_dora": [True, False],
    "lora.target_modules": ["all-linear", ["q_proj", "v_proj"]],
    "train.epochs": {"low": 1, "high": 4, "step": 1},
}


@pytest.fixture
def study(make_recipe, paper_bench, tmp_path):
    """Two objectives, ten trials, one of which could not fit."""
    paper_bench.room = 5 * 1024**3
    recipe = make_recipe(
        'tune.objectives=["loss", "train_bytes"]', "tune.trials=10", "tune.sampler=random", space=SPACE
    )
    folder = StudyDir(tmp_path / "study")
    search(recipe, folder)
    return folder


def pictures(folder):
    return sorted(path.stem for path in folder.path.glob("*.png"))


def test_a_study_is_drawn_in_pictures_and_shown_on_a_page_that_needs_nothing_else(study, tmp_path):
    assert {"front", "history", "parallel", "slices"} <= set(pictures(study))
    page = tmp_path / "report.html"
    report([study.path], page)
    text = page.read_text()
    for title in ("History", "Pareto front", "Parallel coordinates", "Slices"):
        assert f"<h3>{title}</h3>" in text
    sources = re.findall(r'<img class="picture" src="([^"]+)"', text)
    assert len(sources) == len(pictures(study))
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "Hyperparameters searched: 10 trials" in text
    best = json.loads((study.path / "tune.json").read_text())["best"]["values"]
    assert f"{best[LR]:.4g}" in text


def test_of_one_objective_there_is_no_front_and_an_older_one_goes(make_recipe, study):
    recipe = make_recipe("tune.trials=2", space={LR: SPACE[LR]})
    search(recipe, study, force=True)
    assert pictures(study) == ["history", "parallel", "slices"]


def test_a_study_is_told_in_markdown_and_json_and_has_no_frontier_to_draw(study, tmp_path):
    report([study.path], tmp_path / "a.md")
    assert "10 trials" in (tmp_path / "a.md").read_text()
    report([study.path], tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())["studies"][0]
    assert (found["trials"], found["objectives"]) == (10, ["loss", "train_bytes"])
    assert "pictures" not in found
    with pytest.raises(RunError):
        report([study.path], tmp_path / "a.png")


def test_a_damaged_study_is_one_line(study, tmp_path):
    (study.path / "tune.json").write_text('{"trials": []}')
    shown = CliRunner().invoke(main, ["report", str(study.path), "-o", str(tmp_path / "a.html")])
    assert shown.exit_code == 2
    assert str(study.path) in shown.stderr


def test_a_population_is_drawn_with_what_its_best_member_comes_from(tmp_path):
    def outcome(generation, member, parent, loss, *changes):
        lineage = {"values": {LR: 1e-3 * (1 + member)}, "changes": list(changes)}
        names = {"generation": generation, "member": member, "parent": parent, "step": 10 * generation}
        return {**names, "eval_loss": loss, "lineage": lineage}

    outcomes = [outcome(1, 0, None, 2.0), outcome(1, 1, None, None)]
    outcomes += [outcome(2, 0, 0, 1.5), outcome(2, 1, 0, 1.4, {"after_step": 10, LR: 5e-3})]
    document = {"recipe": "x", "population": 2, "space": {LR: {"log": True}}, "outcomes": outcomes, "best": outcomes[3]}
    draw_population(document, tmp_path / "population.png")
    assert (tmp_path / "population.png").read_bytes()[:4] == b"\x89PNG"
