"""The picture of a confusion matrix: edgetune/report/confusion.py."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from edgetune.errors import RunError
from edgetune.report.confusion import draw_confusion


def draw(matrix, path, labels=None, title="int4 bundle"):
    """Draw and read back, (height, width, 4) in 0..1."""
    draw_confusion(matrix, labels or [f"label_{number}" for number in range(len(matrix))], path, title=title)
    return imread(path)


def colours(image):
    """(blue pixels, orange pixels): those clearly of the one or the other, the key's bars among them."""
    red, blue = image[..., 0], image[..., 2]
    return int((blue > red + 0.3).sum()), int((red > blue + 0.3).sum())


@pytest.mark.parametrize("count", [1, 12, 77, pytest.param(120, marks=pytest.mark.slow)])
def test_a_matrix_of_any_size_becomes_a_png_that_grows_with_it(tmp_path, count):
    height, width, _ = draw(np.eye(count, dtype=int) * 40, tmp_path / "confusion.png").shape
    assert min(height, width) > max(300, 15 * count)
    assert max(height, width) < 700 + 100 * count


def test_right_answers_are_blue_and_wrong_ones_orange(tmp_path):
    right_blue, right_orange = colours(draw([[5, 0], [0, 5]], tmp_path / "right.png"))
    wrong_blue, wrong_orange = colours(draw([[0, 5], [5, 0]], tmp_path / "wrong.png"))
    assert right_blue > wrong_blue + 20_000
    assert wrong_orange > right_orange + 20_000


def test_colour_is_the_share_of_the_row_and_not_the_count(tmp_path):
    few, many = draw([[1, 0], [0, 1]], tmp_path / "few.png"), draw([[1, 0], [0, 9]], tmp_path / "many.png")
    assert abs(colours(few)[0] - colours(many)[0]) < 500  # the digits differ


def test_a_label_without_rows_is_drawn_empty(tmp_path):
    draw([[0, 0], [0, 3]], tmp_path / "confusion.png")


def test_labels_are_text_and_never_formulas(tmp_path):
    draw([[1, 0], [0, 1]], tmp_path / "confusion.png", labels=["$_", "$\\frac$"], title="$^")


def test_labels_in_a_script_the_font_lacks_are_drawn_without_a_warning(tmp_path):
    draw([[1, 0], [0, 1]], tmp_path / "confusion.png", labels=["カード", "😀"])


def test_a_long_label_does_not_blow_up_the_picture(tmp_path):
    short = draw([[1, 0], [0, 1]], tmp_path / "short.png", labels=["a" * 40, "b"])
    long = draw([[1, 0], [0, 1]], tmp_path / "long.png", labels=["a" * 400, "b"])
    assert abs(short.shape[1] - long.shape[1]) < 30


def test_the_folder_is_made_and_nothing_else_is_left(tmp_path):
    draw([[1]], tmp_path / "results" / "confusion.png")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["confusion.png"]


@pytest.mark.parametrize("matrix", [[], [[1, 2]], [[1, 0], [0, 1], [0, 0]]])
def test_a_matrix_that_does_not_fit_its_labels_is_an_error(tmp_path, matrix):
    with pytest.raises(ValueError, match="need \\(C, C\\) and C labels"):
        draw_confusion(matrix, [str(number) for number in range(len(matrix))], tmp_path / "confusion.png", title="t")


def test_a_path_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        draw([[1]], tmp_path / "file" / "confusion.png")
