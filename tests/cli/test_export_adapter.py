"""`export-adapter`, and `generate` and `chat` with --adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from edgetune.cli import main
from edgetune.lora.adapter import attach, save
from edgetune.model.base import load_base
from edgetune.recipe import DataTable, ExportTable, LoraTable, ModelTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import open_bundle
from edgetune.runtime.decoder import Decoder

PROMPT = "turn on the lamp"
SHORT = ("--max-new-tokens", 8)


def invoke(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], input=stdin)


def make_run(base: Path, rows: Path, path: Path, *, seed: int) -> RunDir:
    run_dir = RunDir(path).create()
    table = ModelTable(str(base), compute_dtype="float32", quantization="none")
    recipe = Recipe(table, DataTable(train=str(rows), eval_fraction=0.3), export=ExportTable(calibration_rows=8))
    run_dir.recipe.write_text(recipe.to_toml(), encoding="utf-8")
    torch.manual_seed(seed)
    model = attach(load_base(table), LoraTable(r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save(model, run_dir.adapter, table)
    return run_dir


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tiny_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(tiny_base, tiny_rows, folder / f"run-{seed}", seed=seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def bundle(runs: list[RunDir]) -> Path:
    """Two adapters in one bundle, made by the commands."""
    first = invoke("export-adapter", runs[0].path, "--name", "lamps", "--json")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["adapters"] == ["lamps"]
    path = runs[0].path / "adapter-bundle"
    second = invoke("export-adapter", runs[1].path, "--into", path, "--name", "heating")
    assert second.exit_code == 0, second.stderr
    assert "ok   adapter's effect" in second.stdout
    return path


def test_generate_answers_with_the_adapter_that_is_asked_for(bundle: Path) -> None:
    answers = {}
    for name in ("lamps", "heating", "none"):
        values = json.loads(invoke("generate", bundle, PROMPT, "--adapter", name, "--json", *SHORT).stdout)
        answers[name] = values["text"]
        assert values["adapter"] == (None if name == "none" else name)
    assert len(set(answers.values())) == 3
    assert invoke("generate", bundle, PROMPT, *SHORT).stdout == answers["lamps"] + "\n"


def test_chat_answers_with_the_adapter_that_is_asked_for(bundle: Path) -> None:
    wanted = Decoder(bundle, adapter="heating").generate(PROMPT, max_new_tokens=8).text
    assert invoke("chat", bundle, "--adapter", "heating", *SHORT, stdin=PROMPT + "\n").stdout == wanted + "\n"


def test_an_unknown_adapter_exits_2_and_says_which_there_are(bundle: Path, tiny_bundle: Path) -> None:
    result = invoke("generate", bundle, PROMPT, "--adapter", "doors")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "has no adapter 'doors'; it has lamps, heating, none" in result.stderr
    result = invoke("generate", tiny_bundle, PROMPT, "--adapter", "lamps")
    assert "`edgetune export-adapter RUN` makes one that has some" in result.stderr


def test_a_name_that_is_taken_exits_2(bundle: Path, runs: list[RunDir]) -> None:
    result = invoke("export-adapter", runs[1].path, "--into", bundle, "--name", "lamps")
    assert result.exit_code == 2
    assert "replace it with --force" in result.stderr
    assert list(open_bundle(bundle).adapters) == ["lamps", "heating"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--into", "x", "--out", "y"), "adds to a bundle as it is"),
        (("--set", 'export.precision="fp16"'), "on the grid only"),
        (("--name", "none"), "'none' means the base alone; choose another name with --name"),
        (("--into", "nowhere"), "nowhere: no such bundle; `edgetune export-adapter RUN` makes one, without --into"),
    ],
)
def test_options_that_do_not_go_together_exit_2(
    runs: list[RunDir], arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("export-adapter", runs[1].path, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_folder_that_is_no_run_exits_2(tmp_path: Path) -> None:
    result = invoke("export-adapter", tmp_path)
    assert result.exit_code == 2
    assert "is no run folder; give one, with its adapter and its rows" in result.stderr


def test_a_classifier_s_run_exits_2(tiny_base: Path, tiny_rows: Path, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run").create()
    text = f'[model]\nbase = "{tiny_base}"\ntask = "classification"\n[data]\ntrain = "{tiny_rows}"\n'
    run_dir.recipe.write_text(text, encoding="utf-8")
    result = invoke("export-adapter", run_dir.path)
    assert result.exit_code == 2
    assert "is a classifier's run" in result.stderr


def test_a_run_without_an_adapter_exits_2(runs: list[RunDir], tmp_path: Path) -> None:
    empty = RunDir(tmp_path / "run").create()
    empty.recipe.write_text(runs[0].recipe.read_text(encoding="utf-8"), encoding="utf-8")
    result = invoke("export-adapter", empty.path)
    assert result.exit_code == 2
    assert "no adapter" in result.stderr
