"""`edgetune export`: a verified bundle, or exit code 5."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner, Result

from edgetune.bundle.generation import training_rows
from edgetune.bundle.layer_changes import layers_changed
from edgetune.cli import main
from edgetune.cli.export import MOVED
from edgetune.export.graph import Weights
from edgetune.export.read_graph import GraphWeights, same_bytes
from edgetune.model.weights import find_tensors
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.precisions import PRECISIONS
from edgetune.recipe import DataTable, ExportTable, Method, ModelTable, Recipe, load_recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import open_bundle


@pytest.fixture
def run_dir(tiny_base: Path, tiny_rows: Path, tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run").create()
    data, table = DataTable(train=str(tiny_rows), eval_fraction=0.3), ExportTable(calibration_rows=0, repair_steps=0)
    recipe = Recipe(ModelTable(base=str(tiny_base)), data, export=table)
    run_dir.recipe.write_text(recipe.to_toml(), encoding="utf-8")
    run_dir.merged.symlink_to(tiny_base, target_is_directory=True)
    return run_dir


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_json_is_one_document_with_the_proof(run_dir: RunDir) -> None:
    result = invoke(run_dir.path, "--precision", "int8", "--set", "export.block_size=64", "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["verified"]["passed"] is True
    assert values["precision"] == "int8"
    grid = open_bundle(run_dir.bundle).grid
    assert grid is not None
    assert (grid.bits, grid.block_size) == (8, 64)


@pytest.mark.parametrize(
    ("precision", "method"),
    [
        *(("int4", method) for method in get_args(Method)),
        *(
            pytest.param("int2", method, marks=() if method == "gptq" else pytest.mark.slow)
            for method in get_args(Method)
        ),
    ],
)
def test_every_method_makes_a_bundle_with_exactly_its_bytes(
    run_dir: RunDir, tmp_path: Path, method: Method, precision: str
) -> None:
    """Verification compares them too; here they are rounded once more, apart from it."""
    seen = 4 if method == "awq" else 16  # rows; awq tries many scales on each
    settings = [f"export.method={method}", f"export.calibration_rows={seen}", "export.repair_steps=0"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    result = invoke(run_dir.path, "--precision", precision, *flags)
    assert result.exit_code == 0, result.stderr
    assert "ok   weight bytes: 0, limit 0" in result.stdout
    bundle = open_bundle(run_dir.bundle)
    assert bundle.verified["passed"] is True
    assert bundle.provenance["method"] == method
    recipe = load_recipe(run_dir.recipe, [*settings, f"export.precision={precision}"])
    grid, rows = bundle.grid, training_rows(run_dir.merged, recipe, tmp_path / "cache")
    assert grid is not None
    again = quantize_decoder(run_dir.merged, tmp_path / "grid", recipe, grid, rows=rows)
    weights = GraphWeights(run_dir.bundle / "model.onnx", find_tensors(run_dir.merged))
    assert {node.attributes["bits"] for node in weights.nodes} == {grid.bits, 8}
    source = Weights(find_tensors(run_dir.merged), again)
    assert all(same_bytes(source.on_grid(node.sources, grid), weights.matrix(node)) for node in weights.nodes)


def test_scaled_channels_are_repaired_and_verified_like_others(run_dir: RunDir) -> None:
    settings = ["export.method=awq", "export.calibration_rows=4", "export.repair_steps=8"]
    result = invoke(run_dir.path, *[flag for setting in settings for flag in ("--set", setting)])
    assert result.exit_code == 0, result.stderr
    assert "ok   logits against torch" in result.stdout
    bundle = open_bundle(run_dir.bundle)
    assert bundle.provenance["repair"]["best_step"] >= 0
    assert list(layers_changed(bundle, run_dir.merged, {})) == [], "its channels are not the base's"


@pytest.mark.parametrize("option", MOVED)
def test_a_former_option_says_what_does_the_same_now(option: str, run_dir: RunDir) -> None:
    for spelled in (option, f"{option.replace('-', '_').replace('__', '--')}=64"):
        result = invoke(run_dir.path, spelled)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{option} is no option any more: it is {MOVED[option]}" in result.stderr
    verb, *options = MOVED[option].strip("`").split()[1:]
    known = {name for parameter in main.commands[verb].params for name in parameter.opts}
    assert {name for name in options if name.startswith("--")} <= known


def test_each_check_is_a_line_and_another_folder_can_be_named(run_dir: RunDir, tmp_path: Path) -> None:
    result = invoke(run_dir.path, "-o", tmp_path / "elsewhere")
    assert result.exit_code == 0, result.stderr
    assert "ok   weight bytes: 0, limit 0" in result.stdout
    assert open_bundle(tmp_path / "elsewhere").verified["passed"] is True
    assert not run_dir.bundle.exists()


def test_a_failed_verification_exits_5_and_leaves_no_bundle(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRECISIONS, "int4", dataclasses.replace(PRECISIONS["int4"], logits_limit=-1.0))
    result = invoke(run_dir.path)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "failed its verification" in result.stderr
    assert not run_dir.bundle.exists()
    assert (run_dir.path / "bundle.failed").is_dir()


def test_an_existing_bundle_needs_force(run_dir: RunDir) -> None:
    run_dir.bundle.mkdir()
    assert invoke(run_dir.path).exit_code == 2
    assert invoke(run_dir.path, "--force").exit_code == 0


def test_a_folder_that_is_no_run_exits_2(tmp_path: Path) -> None:
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "is no run folder and no merged model; give a run folder" in result.stderr
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "it is an adapter: `edgetune merge" in invoke(tmp_path).stderr


def test_force_never_replaces_the_run_that_is_exported(run_dir: RunDir) -> None:
    result = invoke(run_dir.path, "--out", run_dir.path, "--force")
    assert result.exit_code == 2
    assert "choose another folder with --out" in result.stderr
    assert run_dir.recipe.is_file()


def test_a_merged_folder_outside_any_run_is_exported_with_rows_of_ones_own(
    tiny_base: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    asked = invoke(tiny_base, "-o", out)
    assert (asked.exit_code, out.exists()) == (2, False)
    assert "give rows with --data" in asked.stderr
    result = invoke(tiny_base, "--data", tiny_rows, "-o", out, "--set", "export.repair_steps=4")
    assert result.exit_code == 0, result.stderr
    assert open_bundle(out).verified["passed"] is True
    again = invoke(tiny_base, "--data", tiny_rows, "-o", out)
    assert again.exit_code == 2
    assert "--force" in again.stderr


def test_a_run_takes_no_rows_but_its_own(run_dir: RunDir, tiny_rows: Path) -> None:
    result = invoke(run_dir.path, "--data", tiny_rows)
    assert result.exit_code == 2
    assert not run_dir.bundle.exists()


def test_what_edgetune_did_not_write_is_never_replaced(run_dir: RunDir, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    for out in (theirs, theirs / "thesis.txt"):
        result = invoke(run_dir.path, "--out", out, "--force")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "is no bundle, and one would take its place; move it away, or choose another" in result.stderr
    assert (theirs / "thesis.txt").read_text() == "years of work"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run", "theirs"]


def test_the_current_folder_is_never_replaced(run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = invoke(run_dir.path, "--out", ".", "--force")
    assert result.exit_code == 2
    assert "the current folder; choose another folder with --out" in result.stderr


def test_a_bundle_whose_manifest_is_damaged_is_replaced_by_force_in_a_run(run_dir: RunDir) -> None:
    run_dir.run_json.write_text("{}")
    run_dir.bundle.mkdir()
    (run_dir.bundle / "edgetune.json").write_text("")
    assert invoke(run_dir.path, "--force").exit_code == 0
    assert open_bundle(run_dir.bundle).verified["passed"] is True
