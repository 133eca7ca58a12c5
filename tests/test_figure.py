"""Figures on their way to a file."""

from pathlib import Path

import pytest

from edgetune.errors import RunError
from edgetune.figure import figure


def test_what_is_drawn_becomes_a_png_of_the_size_asked_for(tmp_path: Path) -> None:
    with figure(tmp_path / "line.png", (2.0, 1.0), dpi=50) as drawn:
        drawn.add_subplot().plot([0, 1], [1, 0])
    content = (tmp_path / "line.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (100, 50)


def test_a_drawing_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), figure(tmp_path / "line.png", (2.0, 1.0)):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "line.png").mkdir()
    with pytest.raises(RunError, match=r"line\.png"), figure(tmp_path / "line.png", (2.0, 1.0)):
        pass
