"""The project's own benchmark as one command: what it runs, when it ends, and how it goes on."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from patience import LONG_S

from benchmarks import reproduce
from benchmarks.readme import RESULTS
from benchmarks.reproduce import ABSENT, STEPS, Step, main, measure, write_page
from edgetune.cli import main as cli

WITH_A_GPU = {"gpu", "gpu_run"}
WITH_A_BROWSER = {"page"}
IN_COMMANDS_OF_ITS_OWN = {"tune"}
"""Of three commands that go on where they stopped, see benchmarks/tune.py."""
LOGS = {"snips_tries"}
"""What was noted down by hand, of trainings that led to the recipe."""

WRITES = """
import json, sys
from pathlib import Path
Path(sys.argv[-1]).write_text(json.dumps({"argument": sys.argv[1]}))
with Path("calls").open("a") as file: file.write(sys.argv[1] + " ")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three commands: one writes its result, one fails, one never ends."""
    (tmp_path / "writes.py").write_text(WRITES)
    (tmp_path / "fails.py").write_text("raise SystemExit('no luck')")
    (tmp_path / "hangs.py").write_text("import pathlib, time; time.sleep(600); pathlib.Path('slept').touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def soon(seconds: float = LONG_S) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("is_full", [False, True], ids=["hour", "full"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_script_takes_the_settings_that_it_is_given(step, is_full, tmp_path):
    for folder in ("quickstart/merged", "nano-snips", "banking77/all-0/merged"):
        (tmp_path / folder).mkdir(parents=True)
    module, *arguments = step.command(tmp_path, is_full=is_full)
    if module == "edgetune":
        command, arguments = cli.commands[arguments[0]], arguments[1:]
        assert Path(arguments[0]).is_file()
    else:
        command = importlib.import_module(module).main
    command.make_context(module, arguments).close()


def test_every_published_result_is_measured_by_some_step_or_cannot_be():
    published = {path.stem for path in RESULTS.glob("*.json")}
    assert published - WITH_A_GPU - WITH_A_BROWSER - IN_COMMANDS_OF_ITS_OWN - LOGS <= {step.name for step in STEPS}


def test_a_step_comes_after_those_that_it_needs():
    names = [step.name for step in STEPS]
    assert all(names.index(other) < names.index(step.name) for step in STEPS for other in step.after)


def test_what_is_done_is_not_done_again_until_settings_or_commit_change(place, monkeypatch):
    step = Step("a", "writes", ("first",), full=("second",))
    for _ in range(2):
        assert measure([step], place, is_full=False, until=soon()) == {"a": "done"}
    assert (place / "calls").read_text().split() == ["first"]
    assert measure([step], place, is_full=True, until=soon()) == {"a": "done"}
    assert (place / "calls").read_text().split() == ["first", "second"]
    monkeypatch.setattr(reproduce, "provenance", lambda: {"commit": "another"})
    measure([step], place, is_full=True, until=soon())
    measure([step], place, is_full=True, until=soon(), anew=["a"])
    assert (place / "calls").read_text().split() == ["first", "second", "second", "second"]


def test_one_that_fails_stops_only_those_that_need_it(place, capsys):
    steps = [Step("bad", "fails"), Step("next", "writes", ("n",), after=("bad",)), Step("other", "writes", ("o",))]
    found = measure(steps, place, is_full=False, until=soon())
    assert found == {"bad": "failed", "next": "left out", "other": "done"}
    told = capsys.readouterr().err
    assert "bad: failed with exit code 1: no luck" in told
    assert "next: left out: needs bad" in told


def test_at_the_end_of_the_time_a_script_is_stopped_and_none_is_begun(place):
    steps = [Step("first", "writes", ("f",)), Step("long", "hangs"), Step("last", "writes", ("l",))]
    measure(steps[:1], place, is_full=False, until=soon())
    found = measure(steps, place, is_full=False, until=soon(1))
    assert found == {"first": "done", "long": "stopped", "last": "not begun"}
    assert not (place / "slept").exists()
    assert measure(steps[2:], place, is_full=False, until=soon()) == {"last": "done"}


def test_data_that_is_not_there_is_named(place, monkeypatch, capsys):
    monkeypatch.delenv("EDGETUNE_DATA", raising=False)
    found = measure([Step("a", "writes", ("a",), needs_data=True)], place, is_full=False, until=soon())
    assert found == {"a": "left out"}
    assert "EDGETUNE_DATA" in capsys.readouterr().err


def test_the_result_of_a_run_is_its_summary(place):
    step = Step("a", "writes", ("a", "{work}/summary.json"), summary="{work}/summary.json")
    measure([step], place, is_full=False, until=soon())
    assert (place / "results" / "a.json").read_text() == (place / "summary.json").read_text()


def test_the_page_has_this_machines_results_and_says_what_was_not_measured(tmp_path):
    (tmp_path / "results").mkdir()
    text = (RESULTS / "int4_loss.json").read_text(encoding="utf-8").replace("1.30", "7.77")
    (tmp_path / "results" / "int4_loss.json").write_text(text, encoding="utf-8")
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "stories260K 7.77" in page
    assert f"<!-- begin decode -->\n{ABSENT}\n<!-- end decode -->" in page
    assert "![" not in page


def test_the_list_measures_nothing(tmp_path):
    done = CliRunner().invoke(main, ["--work", str(tmp_path / "w"), "--list"])
    assert done.exit_code == 0
    assert f"python -m edgetune run recipes/quickstart.toml -o {tmp_path / 'w'}/quickstart" in done.output
    assert not (tmp_path / "w").exists()
    wrong = CliRunner().invoke(main, ["--only", "decoed"])
    assert wrong.exit_code == 2
    assert "decoed" in wrong.output
    assert sys.executable not in wrong.output
