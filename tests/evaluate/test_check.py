"""The user's own check, in a process of its own: edgetune/evaluate/check.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from patience import LONG_S

from edgetune.errors import DataError
from edgetune.evaluate.check import _Worker, run_check

ROW = {"prompt": "say 4", "messages": [], "reference": "4", "place": "rows.jsonl:1"}
CHECK = """
import json, os, time
from beside import wanted

def check(answer, row):
    print("what a check prints is nobody's business")
    if answer == "slow":
        time.sleep(600)
    if answer == "dead":
        os._exit(3)
    return json.loads(answer) == wanted(row)
"""


def check(tmp_path: Path, text: str = CHECK) -> Path:
    (tmp_path / "beside.py").write_text("def wanted(row):\n    return int(row['reference'])\n")
    (tmp_path / "check.py").write_text(text)
    return tmp_path / "check.py"


def test_a_row_passes_if_the_check_says_so(tmp_path: Path) -> None:
    found = run_check(check(tmp_path), [("4", ROW), ("5", ROW), (" 4", ROW)], seconds=LONG_S)
    assert found.passed == (True, False, True)
    assert (found.timed_out, found.raised, found.first_error) == (0, 0, None)


def test_what_raises_or_dies_or_takes_too_long_has_failed_and_the_next_row_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = _Worker.ask
    monkeypatch.setattr(
        _Worker, "ask", lambda self, asked, _: ask(self, asked, 0.5 if "slow" in asked["answer"] else LONG_S)
    )
    rows = [("no JSON", ROW), ("dead", ROW), ("4", ROW), ("slow", ROW), ("4", ROW)]
    found = run_check(check(tmp_path), rows, seconds=LONG_S)
    assert found.passed == (False, False, True, False, True)
    assert (found.timed_out, found.raised) == (1, 2)
    assert found.first_error is not None
    assert found.first_error.startswith("JSONDecodeError: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "has no function check"),
        ("check = 1", "has no function check"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("def check(:", "SyntaxError"),
        ("import os; os._exit(7)", "ends the process with code 7"),
        ("raise SystemExit(1)", "SystemExit"),
    ],
)
def test_a_file_that_cannot_check_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        run_check(check(tmp_path, text), [("4", ROW)], seconds=LONG_S)
