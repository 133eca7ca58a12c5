"""Liger's kernels: asked for where they cannot be, and put away after the training. What they compute: test_gpu.py."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch

from edgetune.errors import HardwareError, MissingExtraError
from edgetune.model.base import load_base
from edgetune.recipe import ModelTable
from edgetune.train.liger import check_liger, liger_kernels


def test_without_a_gpu_there_are_no_liger_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError) as caught:
        check_liger(True, "llama")
    assert caught.value.exit_code == 3
    check_liger(False, "llama")


def test_liger_that_is_not_installed_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="not installed") as caught:
        check_liger(True, "llama")
    assert "edgetune[liger]" in caught.value.cure


def test_what_liger_swaps_in_transformers_is_put_back(tiny_base, monkeypatch):
    model = load_base(ModelTable(base=str(tiny_base), quantization="none"))
    module = sys.modules[type(model).__module__]
    before, seen = module.apply_rotary_pos_emb, []

    def swap(base, kernels):
        module.apply_rotary_pos_emb = None
        seen.append((base, kernels["fused_linear_cross_entropy"]))

    monkeypatch.setattr("transformers.integrations.liger.apply_liger_kernel", swap)
    with contextlib.suppress(KeyError), liger_kernels(model, True):
        assert module.apply_rotary_pos_emb is None
        raise KeyError  # as a training that ends early
    assert module.apply_rotary_pos_emb is before
    assert seen == [(model, False)]
    with liger_kernels(model, False):
        assert len(seen) == 1
