"""What layers are given, summed up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from edgetune.quantize import hessian
from edgetune.quantize.hessian import input_hessians


@pytest.mark.parametrize("limit", [1, 1 << 29])
def test_hessians_are_those_of_the_inputs_that_count(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the modules do not fit at once and the model is run for each of them."""
    monkeypatch.setattr(hessian, "HESSIAN_BYTES", limit)
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    batches = [(torch.randn(2, 4, 6), torch.rand(2, 4) > 0.3) for _ in range(3)]

    def run() -> Iterator[Tensor]:
        for states, mask in batches:
            yield mask
            model(states)

    found = dict(input_hessians({"0": model[0], "2": model[2]}, run))
    first = torch.cat([states[mask] for states, mask in batches])
    second = torch.relu(model[0](first)).detach()
    torch.testing.assert_close(found["0"], first.T @ first)
    torch.testing.assert_close(found["2"], second.T @ second)
    assert not model[0]._forward_pre_hooks


def test_inputs_that_are_no_tokens_count_whole() -> None:
    model = nn.Linear(6, 5)

    def run() -> Iterator[Tensor]:
        yield torch.zeros(2, 4, dtype=torch.bool)
        model(torch.ones(3, 6))

    assert torch.equal(dict(input_hessians({"p": model}, run))["p"], torch.full((6, 6), 3.0))
