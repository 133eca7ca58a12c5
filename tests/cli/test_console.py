"""Where the details of a bug go: edgetune/cli/console.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetune.cli import console, main

RECIPE = '[model]\nbase = "edgetune:nano"\n[data]\ntrain = "edgetune:home"\n'


def fail(*_: object, **__: object) -> None:
    raise ZeroDivisionError("zero")


def bugs(folder: Path) -> list[Path]:
    return list(folder.glob("edgetune-bug-*.txt"))


@pytest.mark.parametrize(
    ("verb", "arguments", "broken"),
    [
        ("run", ("a.toml", "--out", "r"), "edgetune.pipeline.run"),
        ("train", ("a.toml", "--out", "r"), "edgetune.train.loop.claim"),
        ("merge", ("r",), "edgetune.recipe.load_recipe"),
        ("export", ("r",), "edgetune.recipe.load_recipe"),
        ("evaluate", ("r",), "edgetune.evaluate.by_path.evaluate_path"),
        ("evaluate", ("r/bundle",), "edgetune.evaluate.by_path.evaluate_path"),
    ],
)
def test_a_bug_is_saved_in_the_run_folder_that_the_verb_works_in(
    verb: str, arguments: tuple[str, ...], broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r").mkdir()
    for file in ("a.toml", "r/recipe.toml", "r/run.json"):
        Path(file).write_text("{}" if file.endswith(".json") else RECIPE)
    monkeypatch.setattr(broken, fail)
    result = CliRunner().invoke(main, [verb, *arguments])
    assert result.exit_code == 1, result.stderr
    assert bugs(tmp_path) == []
    (saved,) = bugs(tmp_path / "r")
    assert f"ZeroDivisionError: zero; the details are in {saved}" in result.stderr
    text = saved.read_text()
    assert "Traceback" in text
    assert all(word in text for word in ('"edgetune": "', '"platform": "', '"torch": "', '"command": ['))


def test_without_out_the_run_folder_is_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text(RECIPE)
    monkeypatch.setattr("edgetune.pipeline.run", fail)
    assert CliRunner().invoke(main, ["run", "a.toml"]).exit_code == 1
    assert len(bugs(tmp_path / "runs" / "a")) == 1


def test_a_bug_before_there_is_a_run_folder_is_saved_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert console.report_bug(ZeroDivisionError(), tmp_path / "r") == 1
    assert len(bugs(tmp_path)) == 1
    assert not (tmp_path / "r").exists()


def test_a_bug_that_can_be_saved_nowhere_is_said_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "read-only")))
    assert console.report_bug(ZeroDivisionError("zero"), tmp_path) == 1
    assert capsys.readouterr().err == "edgetune: this is a bug in EdgeTune: ZeroDivisionError: zero\n"


def test_the_line_of_progress_ends_with_its_block_also_where_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def shown() -> None:
        with console.ProgressLine() as progress:
            progress({"stage": "train", "step": 3, "is_last": True})
            fail()

    with pytest.raises(ZeroDivisionError):
        shown()
    assert capsys.readouterr().err.endswith("train:  step 3\n")
