"""Which results are old, were written by hand or name no commit: on a small repository of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check as checking
from benchmarks.check import MEASURES, REPOSITORY, changed_since, check, old_lines
from benchmarks.readme import PARTS, RESULTS, fill

TABLE = {"decode": ("edgetune/export", "edgetune/runtime"), "quickstart": ("edgetune/train",)}


def git(repository: Path, *arguments: str) -> str:
    named = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    done = subprocess.run(
        ["git", "-C", str(repository), *named, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def write(repository: Path, path: str, text: str) -> None:
    (repository / path).parent.mkdir(parents=True, exist_ok=True)
    (repository / path).write_text(text, encoding="utf-8")


def commit(repository: Path) -> str:
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "change")
    return git(repository, "rev-parse", "HEAD")


def report(commit: str | None, *command: str, value: int = 1) -> str:
    values: dict[str, Any] = {"value": value, "provenance": {"commit": commit, "command": list(command)}}
    return json.dumps(values)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two parts of edgetune, a script and a recipe, in one commit."""
    git(tmp_path, "init", "-q")
    for path in ("edgetune/export/graph.py", "edgetune/runtime/session.py", "edgetune/train/loop.py"):
        write(tmp_path, path, "A = 1\n")
    write(tmp_path, "benchmarks/decode.py", "")
    write(tmp_path, "recipes/quickstart.toml", "")
    commit(tmp_path)
    return tmp_path


def put(repository: Path, name: str, text: str) -> None:
    write(repository, f"benchmarks/results/{name}.json", text)
    commit(repository)


def problems(repository: Path) -> dict[str, str]:
    return {found.name: found.problems for found in check(repository, TABLE)}


def test_a_result_of_its_script_at_a_commit_of_this_history_is_sound(repository):
    head = git(repository, "rev-parse", "HEAD")
    put(repository, "decode", report(head, "decode.py", "--out", "runs/benchmark/results/decode.json"))
    put(repository, "quickstart", report(head, "__main__.py", "run", "recipes/quickstart.toml"))
    assert problems(repository) == {"decode": "", "quickstart": ""}


def test_a_change_of_what_is_measured_makes_it_old_and_no_other_does(repository):
    head = git(repository, "rev-parse", "HEAD")
    put(repository, "decode", report(head, "decode.py"))
    write(repository, "edgetune/train/loop.py", "A = 2\n")
    commit(repository)
    assert problems(repository) == {"decode": ""}
    write(repository, "edgetune/runtime/session.py", "A = 2\n")
    assert changed_since(repository, head, TABLE["decode"]) == ("edgetune/runtime",)  # committed or not
    commit(repository)
    assert problems(repository) == {"decode": "changed since: edgetune/runtime"}
    put(repository, "decode", report(git(repository, "rev-parse", "HEAD"), "decode.py"))
    assert problems(repository) == {"decode": ""}


def test_an_edit_by_hand_is_found_in_what_was_committed_before(repository):
    head = git(repository, "rev-parse", "HEAD")
    put(repository, "decode", report(head, "decode.py"))
    write(repository, "benchmarks/results/decode.json", report(head, "decode.py", value=2))
    assert problems(repository) == {"decode": "was edited after its script had written it"}
    commit(repository)
    assert problems(repository) == {"decode": "was edited after its script had written it"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("-",), "its command, -, is no script of benchmarks"),
        (("measure_it.py",), "its command, measure_it.py, is no script of benchmarks"),
        (("decode.py", "--out", "results/decode_nano.json"), "its command writes decode_nano.json"),
        (("edgetune", "run", "recipes/quickstart.toml"), "its command runs no recipes/decode.toml"),
        ((), "names no command"),
    ],
)
def test_a_command_that_cannot_have_written_it_is_named(repository, command, said):
    put(repository, "decode", report(git(repository, "rev-parse", "HEAD"), *command))
    assert problems(repository) == {"decode": said}


def test_a_result_without_a_commit_of_this_history_is_named(repository):
    head = git(repository, "rev-parse", "HEAD")
    for given, said in (
        (None, "names no commit"),
        ("0" * 40, "its commit is not in this history"),
        (f"{head}+", "the tree had changes that are in no commit"),
    ):
        put(repository, "decode", report(given, "decode.py"))
        assert problems(repository) == {"decode": said}
    put(repository, "else", report(head, "decode.py"))
    assert problems(repository)["else"].startswith("MEASURES in benchmarks/check.py does not say")


def test_a_page_says_below_a_table_that_it_is_old(repository, monkeypatch):
    monkeypatch.setattr(checking, "MEASURES", TABLE)
    monkeypatch.setitem(PARTS, "decode", lambda report: f"| {report['value']} |")
    head = git(repository, "rev-parse", "HEAD")
    put(repository, "decode", report(head, "decode.py"))
    results, page = repository / "benchmarks" / "results", "<!-- begin decode -->\n<!-- end decode -->\n"
    assert old_lines(repository) == {}
    fresh = fill(page, results, old=old_lines(repository))
    assert fresh == "<!-- begin decode -->\n| 1 |\n<!-- end decode -->\n"
    write(repository, "edgetune/export/graph.py", "A = 2\n")
    commit(repository)
    old = fill(fresh, results, old=old_lines(repository))
    line = f"Old: measured at commit {head[:7]}; parts that it measures have changed since."
    assert old == f"<!-- begin decode -->\n| 1 |\n\n{line}\n<!-- end decode -->\n"
    assert fill(old, results) == old
    assert fill(old, results, old={}) == fresh


def test_the_table_says_of_every_result_what_it_measures_and_names_what_is_there():
    assert {path.stem for path in RESULTS.glob("*.json")} | set(PARTS) <= set(MEASURES)
    assert [part for parts in MEASURES.values() for part in parts if not (REPOSITORY / part).exists()] == []
