from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from edgetune.cli import main
from edgetune.lora.adapter import attach, save
from edgetune.model.base import load_base
from edgetune.recipe import DataTable, LoraTable, ModelTable, Recipe


def merge(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)])


@pytest.fixture
def run_folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A run folder as training leaves it: the resolved recipe and the adapter."""
    table = ModelTable(str(tiny_base), compute_dtype="float32")
    torch.manual_seed(0)
    model = attach(load_base(table), LoraTable(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.toml").write_text(Recipe(table, DataTable("x.jsonl")).to_toml())
    save(model, folder / "adapter", table)
    return folder


def test_a_run_is_merged_beside_its_adapter_on_the_trained_base(run_folder: Path) -> None:
    result = merge(run_folder)
    assert result.exit_code == 0, result.stderr
    assert "14 weights merged on the trained base, float32" in result.stdout
    assert (run_folder / "merged/model.safetensors").is_file()


def test_json_is_one_document(run_folder: Path, tmp_path: Path) -> None:
    document = json.loads(merge(run_folder, "--json", "--base", "original", "--out", tmp_path / "out").stdout)
    assert document["path"] == str(tmp_path / "out")
    assert document["merge_base"] == "original"
    assert document["peak_bytes"] > 0


def test_what_is_there_is_replaced_only_by_force(run_folder: Path) -> None:
    assert merge(run_folder).exit_code == 0
    before = load_file(run_folder / "merged/model.safetensors")
    again = merge(run_folder, "--base", "original")
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert "--force" in again.stderr
    assert merge(run_folder, "--base", "original", "--force").exit_code == 0
    after = load_file(run_folder / "merged/model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_force_never_replaces_what_is_merged(run_folder: Path) -> None:
    result = merge(run_folder, "--out", run_folder, "--force")
    assert result.exit_code == 2
    assert "which is read; choose another folder with --out" in result.stderr
    assert (run_folder / "adapter/adapter_config.json").is_file()


def test_an_adapter_folder_finds_its_base_by_its_record(run_folder: Path) -> None:
    result = merge(run_folder / "adapter")
    assert result.exit_code == 0, result.stderr
    assert "on the trained base" in result.stdout
    assert (run_folder / "adapter-merged/config.json").is_file()


def test_an_adapter_made_elsewhere_is_merged_on_the_original_base(run_folder: Path) -> None:
    (run_folder / "adapter/edgetune.json").unlink()
    result = merge(run_folder / "adapter")
    assert result.exit_code == 0, result.stderr
    assert "on the original base" in result.stdout


def test_a_folder_without_an_adapter_is_an_error_with_a_cure(run_folder: Path, tmp_path: Path) -> None:
    import shutil

    missing = merge(tmp_path / "nowhere")
    assert (missing.exit_code, "no such folder" in missing.stderr) == (2, True)
    shutil.rmtree(run_folder / "adapter")
    untrained = merge(run_folder)
    assert (untrained.exit_code, "no adapter yet" in untrained.stderr) == (2, True)
    assert "Traceback" not in missing.stderr + untrained.stderr


@pytest.mark.parametrize("named", ["/content/drive/base", "../elsewhere", None])
def test_a_base_that_lies_elsewhere_is_asked_for_and_can_be_given(
    run_folder: Path, tiny_base: Path, tmp_path: Path, named: str | None
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(run_folder / "adapter", adapter)
    (adapter / "edgetune.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": named}))
    asked = merge(adapter)
    assert asked.exit_code == 2
    assert "say where its base is: edgetune merge ADAPTER --base FOLDER" in asked.stderr
    done = merge(adapter, "--base", tiny_base)
    assert done.exit_code == 0, done.stderr
    assert "on the original base" in done.stdout


def test_a_run_whose_base_moved_is_told_where_it_is(run_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_base, moved)
    assert merge(run_folder, "--base", moved).exit_code == 0
    wrong = merge(run_folder, "--base", "trainde", "--out", tmp_path / "other")
    assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (2, 1)


def test_what_edgetune_did_not_write_is_never_replaced(run_folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    for out in (theirs, theirs / "thesis.txt", run_folder / "adapter", tmp_path):
        for force in ([], ["--force"]):
            result = merge(run_folder, "--out", out, *force)
            assert (result.exit_code, result.stdout) == (2, "")
            assert "choose another folder with --out" in result.stderr
    assert (theirs / "thesis.txt").read_text() == "years of work"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run", "theirs"]


@pytest.mark.parametrize("out", [".", ".."])
def test_the_current_folder_is_never_replaced(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    result = merge(run_folder, "--out", out, "--force")
    assert result.exit_code == 2
    assert f"edgetune: {out}: holds {tmp_path / 'a/b'}, the current folder; choose another" in result.stderr
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["b"]


def test_the_folder_one_stands_in_is_merged_beside_it(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder / "adapter")
    assert merge(".").exit_code == 0
    assert (run_folder / "adapter-merged/config.json").is_file()


def test_a_damaged_merge_in_a_run_is_replaced_by_force(run_folder: Path) -> None:
    (run_folder / "run.json").write_text("{}")
    (run_folder / "merged").mkdir()
    (run_folder / "merged/edgetune.json").write_text("")
    assert merge(run_folder, "--force").exit_code == 0
    assert (run_folder / "merged/config.json").is_file()
