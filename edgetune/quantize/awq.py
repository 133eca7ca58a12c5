"""Scales for the channels of a layer's inputs: weights of strong channels grow before rounding, so that they lose less.

In the flow: a model, the Hessians of its layers' inputs -> `channel_scales` for layers of one input -> smooth.py, which
multiplies the layers' columns by them and divides what makes the input -> rounding as of any other model.
Source: Lin et al. 2023, AWQ, arXiv:2306.00978, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgetune.quantize.grid import dequantize, quantize
from edgetune.runtime.grid import Grid

EXPONENTS = tuple(step / 10 for step in range(11))
"""Of a channel's strength; 0 changes nothing. The paper tries twenty."""
LEAST_STRENGTH = 1e-4
"""Of a channel, as a share of the strongest: what is hardly ever seen is not scaled without end."""


def channel_scales(weights: Sequence[Tensor], grid: Grid, hessian: Tensor, heads: tuple[int, int]) -> Tensor:
    """The scales (R,) of channels with which weights (N, K) change their outputs least when they are rounded.

    hessian (K, K): the sum of x x^T over the inputs x. heads (repeats, width): the R channels come in heads of `width`,
    each of which the input holds `repeats` times in a row, K = R * repeats; (1, R) for plain channels. The strength of
    a channel is the root of its mean square, where the paper takes the mean magnitude. Ones if no scale is better.
    """
    strength = _for_channels(hessian.diagonal().clamp_min(0), heads).sqrt()
    strength = (strength / strength.max().clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(LEAST_STRENGTH)
    best, least = torch.ones_like(strength), torch.inf
    for exponent in EXPONENTS:
        scales = strength**exponent
        scales = scales / (scales.max() * scales.min()).sqrt()
        columns = for_columns(scales, heads)
        error = 0.0
        for weight in weights:
            scaled = quantize(weight.float() * columns, grid)
            change = dequantize(scaled) / columns - weight.float()
            error += float(((change @ hessian) * change).sum())
        if error < least:
            best, least = scales, error
    return best


def for_columns(scales: Tensor, heads: tuple[int, int]) -> Tensor:
    """Scales (R,) of channels -> (R * repeats,), those of the columns that read them."""
    repeats, width = heads
    return scales.view(-1, 1, width).expand(-1, repeats, width).reshape(-1)


def _for_channels(squares: Tensor, heads: tuple[int, int]) -> Tensor:
    """Squares (K,) of columns -> (R,), the mean over those that read the same channel."""
    repeats, width = heads
    return squares.view(-1, repeats, width).mean(1).flatten()
