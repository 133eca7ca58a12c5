"""Gain kept and layer changes, on numbers whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from edgetune.quant.grid import quantize
from edgetune.quant.survival import gain_kept, layer_change


def test_all_of_the_gain_is_kept_by_equal_answers() -> None:
    found = gain_kept([0, 0, 0, 1], [1, 1, 0, 1], [1, 1, 0, 1])
    assert found.kept == 1.0
    assert found.interval == (1.0, 1.0)


def test_half_of_the_gain_is_kept_where_half_of_the_new_answers_are_lost() -> None:
    found = gain_kept([0] * 40, [1] * 20 + [0] * 20, [1] * 10 + [0] * 30)
    assert found.kept == pytest.approx(0.5)
    low, high = found.interval or (0, 0)
    assert low < 0.5 < high
    assert (found.base, found.tuned, found.shipped) == (0.0, 0.5, 0.25)


def test_a_bundle_worse_than_the_base_keeps_less_than_nothing() -> None:
    assert gain_kept([1, 0], [1, 1], [0, 0]).kept == -1.0


def test_losses_are_weighed_by_tokens_and_lower_is_better() -> None:
    """Means: base (30 + 1) / 4, fine-tune (10 + 1) / 4, bundle (20 + 1) / 4 nats a token."""
    found = gain_kept([30.0, 1.0], [10.0, 1.0], [20.0, 1.0], counts=[3, 1], is_loss=True)
    assert found.kept == pytest.approx(0.5)
    assert found.base == pytest.approx(31 / 4)


def test_no_gain_is_no_share() -> None:
    found = gain_kept([1, 1, 0], [1, 0, 1], [1, 1, 1])
    assert found.kept is None
    assert found.interval is None


def test_the_base_may_be_one_known_number() -> None:
    assert gain_kept(0.25, [1, 1, 1, 1], [1, 1, 1, 0]).kept == pytest.approx((0.75 - 0.25) / 0.75)


def test_rows_must_belong_together() -> None:
    with pytest.raises(ValueError, match="2 rows and 3 counts"):
        gain_kept([0, 0], [1, 1], [1, 1], counts=[1, 1, 1])


def _weights() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(32, 64, generator=generator)
    return base, base + 0.3 * torch.randn(32, 64, generator=generator)


def test_a_layer_rounded_from_the_merge_has_the_change() -> None:
    base, merged = _weights()
    found = layer_change("a", base, merged, quantize(merged, bits=4, block_size=32))
    assert found.correlation > 0.9
    assert found.norm_ratio == pytest.approx(1.0, abs=0.1)
    assert 0.5 < found.codes_changed < 1


def test_a_layer_rounded_from_the_base_has_nothing_of_the_change() -> None:
    base, merged = _weights()
    found = layer_change("a", base, merged, quantize(base, bits=4, block_size=32))
    assert abs(found.correlation) < 0.2


def test_a_layer_that_was_not_to_change_has_no_correlation() -> None:
    base, _ = _weights()
    assert math.isnan(layer_change("a", base, base, quantize(base, bits=4, block_size=32)).correlation)
