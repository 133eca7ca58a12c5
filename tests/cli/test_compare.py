"""`edgetune compare`: a plain verdict, the rows on which two differ, one line for what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from patience import LONG_S

import edgetune
from edgetune.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """B is right alone on 14 rows, A on 2; 15 are right in both."""
    folders = tmp_path / "a", tmp_path / "b"
    for side, folder in enumerate(folders):
        folder.mkdir()
        with (folder / "bundle-answers.jsonl").open("w", encoding="utf-8") as file:
            for number in range(31):
                right = number >= 16 or (number < 2) == (side == 0)
                answer = "yes\nindeed" if right else "no"
                row = {"prompt": f"p{number}", "reference": "yes\nindeed", "answer": answer, "correct": right}
                file.write(json.dumps({**row, "place": f"rows.jsonl:{number}"}) + "\n")
    return folders


def test_it_says_plainly_which_is_better_and_shows_where_they_differ(pair: tuple[Path, Path]) -> None:
    result = run(*pair, "--rows", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "right answers, 31 rows"
    assert lines[1].endswith("54.8%")
    assert lines[2].endswith("93.5%")
    assert lines[3].startswith("B is better: B - A = +38.7 points (95% interval +")
    assert lines[3].endswith("14 rows right in B alone, 2 in A alone; McNemar, exact, p = 0.0042")
    assert lines[5] == "they differ on 16 rows, 3 of them shown (--rows)"
    assert lines[7:11] == ["rows.jsonl:0  p0", "  wanted  yes indeed", "  A right   yes indeed", "  B wrong   no"]
    assert len(lines) == 6 + 3 * 5


def test_what_cannot_be_told_is_said_with_what_it_would_take(pair: tuple[Path, Path]) -> None:
    result = run(*pair, "--confidence", 0.999)
    assert "do not tell which is better (one would have to be right alone on 15 of those 16)" in result.stdout


def test_equal_answers_are_no_difference(pair: tuple[Path, Path]) -> None:
    result = run(pair[0], pair[0])
    assert result.exit_code == 0
    assert "no row on which they differ" in result.stdout


def test_json_is_one_document_with_every_row(pair: tuple[Path, Path]) -> None:
    values = json.loads(run(*pair, "--json", "--rows", 1).stdout)
    assert values["better"] == "b"
    assert values["verdict"].startswith("B is better")
    assert len(values["differing"]) == 16
    assert values["differing"][0]["wanted"] == "yes\nindeed"


def test_other_rows_are_exit_code_2_and_one_line(pair: tuple[Path, Path]) -> None:
    file = pair[1] / "bundle-answers.jsonl"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:5]), encoding="utf-8")
    result = run(*pair)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "31 rows" in result.stderr
    assert "edgetune evaluate" in result.stderr


def test_it_needs_nothing_of_training(pair: tuple[Path, Path]) -> None:
    blocked = ["torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "onnxruntime", "sklearn"]
    code = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"from edgetune.cli import main\nmain({['compare', *map(str, pair)]!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(edgetune.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "B is better" in done.stdout
