"""A recipe through all stages on tiny objects: edgetune/pipeline.py, `edgetune run` and `edgetune evaluate`."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from edgetune.cli import main
from edgetune.errors import CheckError
from edgetune.files import read_json

STAGES = ["train", "evaluate-tuned", "evaluate-base", "merge", "evaluate-merged", "export"]
STAGES += ["evaluate-onnx-fp32", "evaluate-onnx-exact", "evaluate-bundle"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_recipe):
    """A folder with tiny.toml and the finished run of it, with what it printed."""
    path = tmp_path_factory.mktemp("pipeline")
    recipe = tiny_recipe(
        train={"eval_steps": 5},
        export={"repair_steps": 4},
        evaluate={"metric": "json", "max_rows": 8},
    )
    (path / "tiny.toml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        done = CliRunner().invoke(main, ["run", "tiny.toml"])
    assert done.exit_code == 0, done.stderr
    return path, done


@pytest.fixture
def edgetune(finished, tmp_path, monkeypatch):
    """A function that runs a verb in a copy of the finished run's folder."""
    shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def _summary(path, name="tiny"):
    return read_json(path / "runs" / name / "results" / "summary.json")


def test_the_table_is_all_that_stdout_holds(finished):
    lines = finished[1].stdout.splitlines()
    assert lines[0].startswith("model")
    names = ["base", "fine-tuned (4-bit + adapter)", "merged", "int4 bundle"]
    assert [line.split("  ")[0] for line in lines[1:]] == names


def test_stderr_says_where_the_bundle_is_and_what_comes_next(finished):
    assert finished[1].stderr.splitlines()[-1].endswith("next: edgetune chat runs/tiny/bundle")


def test_the_summary_holds_every_stage_and_measurement(finished):
    summary = _summary(finished[0])
    assert list(summary["stage_s"]) == STAGES
    assert all(check["passed"] for check in summary["verification"])
    assert summary["rows"] == read_json(finished[0] / "runs/tiny/results/bundle.json")["score"]["rows"]
    base, tuned, merged, bundle = summary["table"]
    assert tuned["loss"] < base["loss"]
    assert merged["loss"] == pytest.approx(tuned["loss"], rel=0.01)  # the same weights but for bf16 rounding
    assert bundle["peak_bytes"] < merged["peak_bytes"]
    assert tuned["disk_bytes"] > base["disk_bytes"]


def test_the_ledger_has_every_step_to_the_device(finished):
    stages = {item["stage"]: item for item in read_json(finished[0] / "runs/tiny/results/ledger.json")["stages"]}
    assert list(stages) == ["base", "tuned", "merged", "onnx-fp32", "onnx-exact", "bundle"]
    assert stages["tuned"]["kl"] == pytest.approx(0, abs=1e-9)
    assert stages["tuned"]["same_answers"] == 1.0
    assert stages["base"]["kl"] > stages["bundle"]["kl"] > stages["tuned"]["kl"]
    assert stages["onnx-fp32"]["loss"] == pytest.approx(stages["merged"]["loss"], rel=1e-3)  # bf16 or float32 products
    assert stages["onnx-exact"]["disk_bytes"] < stages["onnx-fp32"]["disk_bytes"]


def test_the_bundle_says_how_much_of_the_gain_it_kept(finished):
    run = finished[0] / "runs/tiny"
    survival = read_json(run / "results/survival.json")
    gain = survival["loss"]
    results = [read_json(run / f"results/{name}.json")["score"]["loss"] for name in ("base", "tuned", "bundle")]
    assert gain["kept"] == pytest.approx((results[0] - results[2]) / (results[0] - results[1]))
    assert read_json(run / "bundle/edgetune.json")["verified"]["gain_kept"]["loss"]["kept"] == gain["kept"]
    assert {layer["codes_changed"] > 0 for layer in survival["layers"]} == {True}


def test_training_and_evaluation_agree_on_the_eval_loss(finished):
    """Without data.test the eval rows serve, so both measured the same rows."""
    results = finished[0] / "runs/tiny/results"
    trained = read_json(results / "train.json")["eval_loss"]
    assert read_json(results / "tuned.json")["score"]["loss"] == pytest.approx(trained, rel=1e-3)  # packed or padded


def test_every_answer_is_kept(finished):
    for name in ("base", "tuned", "merged", "bundle"):
        text = (finished[0] / f"runs/tiny/results/{name}-answers.jsonl").read_text(encoding="utf-8")
        answers = [json.loads(line) for line in text.splitlines()]
        assert len(answers) == _summary(finished[0])["rows"]
        assert {"prompt", "reference", "answer", "correct", "loss"} <= set(answers[0])


def test_a_second_run_does_nothing_again(edgetune, tmp_path):
    before = _summary(tmp_path / "copy")["stage_s"]
    done = edgetune("run", "tiny.toml", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("up to date") == len(STAGES)
    assert json.loads(done.stdout)["stage_s"] | {"train": 0} == before | {"train": 0}


def test_what_a_killed_export_left_is_swept_by_the_next_run(edgetune, tmp_path):
    run = tmp_path / "copy" / "runs" / "tiny"
    for name in (".bundle.ab12.tmp", "..bundle.ab12.tmp.cd34", ".bundle.old"):
        shutil.copytree(run / "bundle", run / name)
    assert edgetune("run", "tiny.toml").exit_code == 0
    assert not list(run.glob(".*"))


def test_a_run_leaves_a_page_of_itself(finished):
    assert "no page" not in finished[1].stderr
    text = (finished[0] / "runs/tiny/report.html").read_text(encoding="utf-8")
    bundle = _summary(finished[0])["table"][-1]
    assert f"{bundle['disk_bytes'] / 1024**2:.1f} MiB" in text
    assert "Left out" not in text


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module", name="matplotlib"), OSError(28, "No space left"), KeyError(1)]
)
def test_a_run_without_its_page_is_done_all_the_same(edgetune, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("edgetune.report.write.report", fail)
    done = edgetune("run", "tiny.toml")
    assert done.exit_code == 0
    assert "report: no page: " in done.stderr
    assert ("pip install 'edgetune[report]'" in done.stderr) == (error.__class__ is ModuleNotFoundError)


def test_adapter_and_bundle_have_cards_with_their_scores(finished):
    from huggingface_hub import ModelCard

    rows = {row["name"]: row for row in _summary(finished[0])["table"]}
    for folder, name in (("adapter", "fine-tuned (4-bit + adapter)"), ("bundle", "int4 bundle")):
        card = ModelCard.load(finished[0] / "runs/tiny" / folder / "README.md")
        found = {result.metric_type: result.metric_value for result in card.data.eval_results}
        assert found["loss"] == pytest.approx(rows[name]["loss"], abs=1e-6)
        assert found["exact_match"] == pytest.approx(rows[name]["score"], abs=1e-6)


def test_a_card_that_was_changed_makes_nothing_anew(edgetune, tmp_path):
    for folder in ("adapter", "bundle"):
        (tmp_path / "copy/runs/tiny" / folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    done = edgetune("run", "tiny.toml")
    assert done.exit_code == 0
    assert done.stderr.count("up to date") == len(STAGES)
    assert (tmp_path / "copy/runs/tiny/bundle/README.md").read_text(encoding="utf-8") == "# Mine\n"


def test_only_what_depends_on_a_change_is_done_again(edgetune):
    done = edgetune("run", "tiny.toml", "--set", "export.precision=fp32")
    assert done.exit_code == 0, done.stderr
    current = [line.partition(":")[0] for line in done.stderr.splitlines() if "up to date" in line]
    assert current == STAGES[:5]
    assert done.stdout.splitlines()[-1].startswith("fp32 bundle")


def test_a_bundle_that_was_damaged_is_made_again(edgetune, tmp_path):
    (tmp_path / "copy/runs/tiny/bundle/model.onnx.data").write_bytes(b"no weights")
    done = edgetune("run", "tiny.toml")
    assert done.exit_code == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("export: verifying")]


def test_a_run_folder_of_another_recipe_is_refused(edgetune):
    done = edgetune("run", "tiny.toml", "--set", "lora.r=8")
    assert done.exit_code == 2
    assert "lora.r" in done.stderr


def test_a_plan_over_the_budget_stops_before_training(edgetune, tmp_path):
    done = edgetune("run", "tiny.toml", "-o", "runs/small", "--set", "budget.memory=1 MiB")
    assert done.exit_code == 4
    assert "budget.memory is 1 MiB" in done.stderr
    assert not (tmp_path / "copy/runs/small/adapter").exists()


def test_a_run_that_cost_more_than_its_budget_says_so(edgetune, tmp_path):
    done = edgetune("run", "tiny.toml", "--set", "budget.minutes=1e-6")
    assert done.exit_code == 0, done.stderr
    assert "over budget: " in done.stderr
    assert "budget.minutes is 1e-06" in _summary(tmp_path / "copy")["over_budget"][0]


def test_a_failed_verification_is_exit_code_5_and_named(edgetune, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise CheckError("the bundle failed its verification: logits against torch", cure="export again")

    monkeypatch.setattr("edgetune.bundle.export.export", refuse)
    done = edgetune("run", "tiny.toml", "--set", "export.block_size=16")
    assert done.exit_code == 5
    assert "logits against torch" in done.stderr
    assert "export" not in read_json(tmp_path / "copy/runs/tiny/run.json")["stages"]


def test_evaluate_scores_all_that_a_run_holds_on_other_rows(edgetune, tiny_rows, tmp_path):
    for folder in ("adapter", "merged"):
        shutil.rmtree(f"runs/tiny/{folder}")
    done = edgetune("evaluate", "runs/tiny", "--data", str(tiny_rows), "--max-rows", "3", "--json")
    assert done.exit_code == 0, done.stderr
    values = json.loads(done.stdout)
    assert [row["name"] for row in values["table"]] == ["base", "int4 bundle"]
    assert values["rows"] == 3
    assert (tmp_path / "copy/runs/tiny/results/evaluate/bundle-answers.jsonl").exists()


def test_evaluate_prints_field_scores_under_the_table(edgetune):
    done = edgetune("evaluate", "runs/tiny/bundle")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("int4 bundle")
    assert done.stdout.splitlines()[2].startswith("fields of bundle: F1")


def test_a_bundle_whose_bytes_changed_gets_no_score(edgetune, tmp_path):
    data = tmp_path / "copy/runs/tiny/bundle/model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    done = edgetune("evaluate", "runs/tiny/bundle")
    assert done.exit_code == 2
    assert "model.onnx.data: not the bytes that were exported" in done.stderr


def test_evaluate_by_loss_generates_nothing(edgetune):
    done = edgetune("evaluate", "runs/tiny/bundle", "--metric", "loss", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["table"][0]["score"] is None


@pytest.mark.parametrize(("kind", "place"), [("adapter", 1), ("merged", 2), ("bundle", 3)])
def test_what_was_taken_out_of_its_run_scores_the_same(edgetune, tmp_path, kind, place):
    shutil.move(f"runs/tiny/{kind}", tmp_path / "elsewhere")
    rows = read_json(tmp_path / "copy/runs/tiny/results/rows.json")["rows"]
    lines = [json.dumps({"prompt": row["messages"][0]["content"], "completion": row["reference"]}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    arguments = ("--data", str(tmp_path / "rows.jsonl"), "--metric", "json", "--set", "evaluate.max_new_tokens=8")
    done = edgetune("evaluate", str(tmp_path / "elsewhere"), *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    outside, inside = json.loads(done.stdout)["table"][0], _summary(tmp_path / "copy")["table"][place]
    assert outside["score"] == inside["score"]
    assert outside["loss"] == pytest.approx(inside["loss"], rel=1e-6)


def test_evaluate_outside_a_run_needs_rows(edgetune, tiny_base):
    done = edgetune("evaluate", str(tiny_base))
    assert done.exit_code == 2
    assert "--data" in done.stderr


def test_evaluate_of_nothing_is_an_error(edgetune, tiny_rows):
    done = edgetune("evaluate", "no-such-folder/x/y", "--data", str(tiny_rows))
    assert done.exit_code == 2
    assert "no-such-folder" in done.stderr


def test_references_that_are_not_json_are_named_with_their_line(edgetune, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "{}"}\n{"prompt": "b", "completion": "no"}\n', encoding="utf-8")
    done = edgetune("evaluate", "runs/tiny/bundle", "--data", str(rows))
    assert done.exit_code == 2
    assert "rows.jsonl:2" in done.stderr
