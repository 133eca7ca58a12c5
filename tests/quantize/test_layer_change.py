"""Layer changes, on numbers whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from edgetune.quantize.grid import dequantize, quantize
from edgetune.quantize.layer_change import layer_change
from edgetune.runtime.grid import Grid

GRID = Grid(4, 32, symmetric=False)


def _weights() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(32, 64, generator=generator)
    return base, base + 0.3 * torch.randn(32, 64, generator=generator)


def test_a_layer_rounded_from_the_merge_has_the_change() -> None:
    base, merged = _weights()
    found = layer_change("a", base, merged, quantize(merged, GRID))
    assert found.correlation > 0.9
    assert found.norm_ratio == pytest.approx(1.0, abs=0.1)
    assert 0.5 < found.codes_changed < 1


def test_a_layer_rounded_from_the_base_has_nothing_of_the_change() -> None:
    base, merged = _weights()
    found = layer_change("a", base, merged, quantize(base, GRID))
    assert abs(found.correlation) < 0.2


def test_a_layer_that_was_not_to_change_has_no_correlation() -> None:
    base, _ = _weights()
    assert math.isnan(layer_change("a", base, base, quantize(base, GRID)).correlation)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_layer_whose_numbers_are_known_has_the_change_that_one_works_out_by_hand(symmetric: bool) -> None:
    """Steps of 1/8 on blocks of 16, of which each holds -1 and 7/8: every weight is a number of the grid.

    The fine-tune moves four of the 48 weights by a step. Shipped, two of them arrive, one went two steps, one none, and
    one that was to stay went a step: intended (1, 1, 1, 1, 0), realised (1, 1, 2, 0, 1), in steps.
    """
    step = 1 / 8
    base = (torch.arange(48) % 16 - 8).float().mul(step)[None]
    merged, shipped = base.clone(), base.clone()
    merged[0, [1, 3, 17, 35]] += step
    shipped[0, [1, 3, 17, 21]] += torch.tensor([1, 1, 2, 1]) * step
    matrix = quantize(shipped, Grid(4, 16, symmetric))
    assert dequantize(matrix).equal(shipped)
    found = layer_change("a", base, merged, matrix)
    assert found.codes_changed == pytest.approx(4 / 48)
    assert found.correlation == pytest.approx(4 / math.sqrt(4 * 7))
    assert found.norm_ratio == pytest.approx(math.sqrt(7 / 4))
