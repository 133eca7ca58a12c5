"""benchmarks/survival.py on toys: every way to the device, its row, and how a benchmark that was stopped goes on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import survival, survival_ways
from benchmarks.survival_table import survival_table
from benchmarks.survival_ways import Way, WayFailed, ways_of
from edgetune.cli import main as cli
from edgetune.files import read_json, write_json
from edgetune.recipe import DataTable, ModelTable, Recipe
from edgetune.run_dir import RunDir


@pytest.fixture
def run(finished_run, tmp_path, monkeypatch) -> RunDir:
    """A copy of a tiny decoder's run, of which the loss is the score; verbs are called in this process."""

    def call(command, **_):
        assert command[:3] == [sys.executable, "-m", "edgetune"]
        done = CliRunner().invoke(cli, command[3:])
        if done.exit_code:
            raise WayFailed(f"exit code {done.exit_code}: {done.stderr.splitlines()[-1]}")

    monkeypatch.setattr(survival_ways, "_call", call)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run / "runs/tiny", tmp_path / "tiny")
    return RunDir(tmp_path / "tiny")


def a_recipe(task: str) -> Recipe:
    return Recipe(ModelTable(base="x", task=task), DataTable(train="y"))  # type: ignore[arg-type]


def copied(run_dir: RunDir, work: Path) -> Path:
    return Path(shutil.copytree(run_dir.bundle, work / "bundle"))


def refused(_: RunDir, __: Path) -> Path:
    raise WayFailed("no such\nkernel")


@pytest.fixture
def measure(run, monkeypatch):
    """A function that measures the tiny run as quickstart, by given ways alone; the report it wrote."""

    def of(*ways: Way, arguments: tuple[str, ...] = ()) -> dict:
        monkeypatch.setattr(survival, "ways_of", lambda *_: list(ways))
        asked = [str(run.path), "--task", "quickstart", "--out", "survival.json", *arguments]
        done = CliRunner().invoke(survival.main, asked)
        assert done.exit_code == 0, done.output
        return read_json(Path("survival.json"))

    return of


def test_a_task_has_the_ways_that_its_kind_of_model_can_go():
    decoder, classifier = (
        [way.name for way in ways_of(a_recipe(task), "python")] for task in ("generation", "classification")
    )
    ours = ["EdgeTune default", "EdgeTune export-best"]
    assert classifier == [*ours, "onnxruntime dynamic int8", "onnxruntime static int8"]
    builder = ["onnxruntime-genai default int4", "onnxruntime-genai k_quant, int8 head"]
    llama = ["llama.cpp Q4_0", "llama.cpp Q4_K_M", "llama.cpp Q8_0"]
    assert decoder == [*ours, "EdgeTune two bits", *builder, "Olive GPTQ int4", *llama]


def test_the_default_is_the_very_bundle_that_the_verb_makes(run, tmp_path):
    """Nothing is set: not the block size, not the method, not how long repair takes."""
    (tmp_path / "work").mkdir()
    made = ways_of(a_recipe("generation"), "python")[0].make(run, tmp_path / "work")
    for name in ("model.onnx", "model.onnx.data"):
        assert (made / name).read_bytes() == (run.bundle / name).read_bytes()


def test_two_bits_are_asked_of_the_verb(run, tmp_path):
    (tmp_path / "work").mkdir()
    made = ways_of(a_recipe("generation"), "python")[2].make(run, tmp_path / "work")
    assert read_json(made / "edgetune.json")["grid"]["bits"] == 2


def test_rows_of_the_run_and_of_llama_cpp_have_every_column(measure):
    pytest.importorskip("llama_cpp")
    wide = next(way for way in ways_of(a_recipe("generation"), "python") if way.name == "llama.cpp Q8_0")
    task = measure(wide, Way("the run's bundle", copied))["tasks"]["quickstart"]
    tuned, merged, eight, four = task["rows"]
    assert [row["name"] for row in (tuned, merged)] == ["as it was trained", "merged, not rounded"]
    assert tuned["gain_kept_loss"]["kept"] == pytest.approx(1)
    assert eight["gain_kept_loss"]["kept"] == pytest.approx(1, abs=0.02)
    assert tuned["kl"] == pytest.approx(0, abs=1e-9) != eight["kl"] < four["kl"]
    assert four["file_bytes"] == sum(path.stat().st_size for path in Path("tiny/bundle").glob("model.onnx*"))
    assert eight["bits_per_weight"] == 8 * eight["file_bytes"] / task["parameters"]
    assert (eight["score"], eight["same_answers"]) == (None, None)  # the metric is the loss: nothing is answered
    assert set(eight) - set(tuned) == {"made_s"}
    assert eight["rows"] == tuned["rows"] > 0


def test_what_the_builder_cannot_make_says_why(run, tmp_path):
    (tmp_path / "work").mkdir()
    config = read_json(run.merged / "config.json")
    write_json(run.merged / "config.json", {**config, "architectures": ["NoSuchForCausalLM"]})
    with pytest.raises(WayFailed, match="the builder fails: "):
        survival_ways.by_builder(run, tmp_path / "work")


def test_a_bundle_of_the_builder_answers_with_the_run_s_settings(run, tmp_path):
    (tmp_path / "work").mkdir()
    made = survival_ways.by_builder(run, tmp_path / "work", options={"int4_block_size": "32"})
    ours, theirs = (read_json(folder / "edgetune.json") for folder in (run.bundle, made))
    assert theirs["chat"] == ours["chat"]
    assert theirs["files"] != ours["files"]


def test_what_was_measured_is_kept_and_what_failed_says_so(measure):
    made = []

    def counted(run_dir: RunDir, work: Path) -> Path:
        made.append(work)
        return copied(run_dir, work)

    write_json(Path("survival.json"), {"tasks": {"babyllama-105": {"rows": []}}, "provenance": {"commit": "old"}})
    first = measure(Way("one", counted))
    assert first["tasks"]["babyllama"]["provenance"] == {"commit": "old"}
    assert first["tasks"]["quickstart"]["provenance"]["commit"] != "old"
    second = measure(Way("one", counted), Way("two", refused))
    assert second["tasks"]["quickstart"]["rows"][:3] == first["tasks"]["quickstart"]["rows"]
    assert second["tasks"]["quickstart"]["rows"][3]["failed"] == "no such kernel"
    assert len(made) == 1
    assert not made[0].exists()
    measure(Way("one", counted), Way("two", copied), arguments=("--again", "two"))
    assert len(made) == 1
    third = read_json(Path("survival.json"))["tasks"]["quickstart"]["rows"]
    assert third[3]["loss"] == third[2]["loss"]
    with Path("tiny/merged/config.json").open("a") as file:
        file.write("\n")
    measure(Way("one", counted))
    assert len(made) == 2


def test_rows_are_written_one_by_one(measure):
    def stopped(_: RunDir, __: Path) -> Path:
        assert [row["name"] for row in read_json(Path("survival.json"))["tasks"]["quickstart"]["rows"]][2:] == ["one"]
        raise WayFailed("seen")

    assert measure(Way("one", copied), Way("two", stopped))["tasks"]["quickstart"]["rows"][3]["failed"] == "seen"


def test_answers_that_are_the_fine_tunes_are_counted(tmp_path):
    for name, answers in (("tuned", ["a", "b", "c", "d"]), ("other", ["a", "x", "c", "d"])):
        (tmp_path / name).write_text("".join(json.dumps({"answer": text}) + "\n" for text in answers))
    assert survival.same_answers(tmp_path / "tuned", tmp_path / "other") == 0.75


def test_a_command_that_fails_is_quoted():
    with pytest.raises(WayFailed, match="exit code 1: no luck"):
        survival_ways._call([sys.executable, "-c", "raise SystemExit('told\\nno luck')"])


def test_olive_is_given_the_training_rows(run, monkeypatch):
    """Its command is looked at, and its error becomes the row's."""

    def call(command, **_):
        assert command[1:4] == ["-m", "olive", "run"]
        config = read_json(Path(command[-1]))
        rows = Path(config["data_configs"][0]["load_dataset_config"]["data_files"]).read_text().splitlines()
        assert 0 < len(rows) <= survival_ways.OLIVE_ROWS
        assert "turn" in " ".join(rows)
        assert Path(config["input_model"]["model_path"]) == run.merged.resolve()
        raise WayFailed("exit code 1: No module named olive")

    monkeypatch.setattr(survival_ways, "_call", call)
    row = survival.row_of(run, Way("Olive", lambda *of: survival_ways.by_olive(*of, python="python")))
    assert row["failed"] == "exit code 1: No module named olive"


def test_the_runtime_says_why_there_are_no_three_bits():
    assert "Only 2b, 4b and 8b" in survival_ways.three_bits()


def test_the_table_has_each_task_with_its_own_commit_and_what_failed(measure):
    report = measure(Way("one", copied), Way("two", refused))
    report["tasks"]["older"] = {"rows": [], "provenance": {**report["provenance"], "commit": "abcdef0123"}}
    report["tasks"]["quickstart"]["note"] = "rounded once before"
    table = survival_table(report)
    assert "at commit abcdef0 " in table
    assert "; rounded once before)" in table
    assert f"| two | no such kernel |{' - |' * 8}" in table
    assert table.count("| one | - | - | ") == 1
    assert "Only 2b, 4b and 8b" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert widths == {11}


def test_a_labelling_model_s_speed_is_that_of_a_text():
    row = {"name": "x", "score": 0.9, "interval": None, "kl": None, "gain_kept_score": None, "gain_kept_loss": None}
    row |= {"file_bytes": 1, "bits_per_weight": 4.0, "peak_bytes": 1, "tokens_per_s": None, "latency_s": 0.004}
    report = {"tasks": {"x": {"rows": [row]}}, "provenance": {"commit": "abc", "started_unix": 0, "cores": 1}}
    report["provenance"]["processor"] = "P"
    assert "| 4.0 ms a text |" in survival_table(report)
