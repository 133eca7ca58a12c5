"""train/offload.py: layers whose inputs waited elsewhere have the same gradients."""

from __future__ import annotations

import pytest
import torch

from edgetune.lora.adapter import attach
from edgetune.model.base import load_base
from edgetune.recipe import LoraTable, ModelTable
from edgetune.train import offload
from edgetune.train.fused import fuse
from edgetune.train.offload import offload_checkpoints


def gradients(base, *, checkpointing, is_offloaded=False, dropout=0.0):
    torch.manual_seed(0)
    model = load_base(ModelTable(str(base), compute_dtype="float32"))
    model = attach(model, LoraTable(r=4, dropout=dropout), gradient_checkpointing=checkpointing).train()
    fuse(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.05)
    if is_offloaded:
        assert offload_checkpoints(model) == model.config.num_hidden_layers
    torch.manual_seed(1)
    ids = torch.arange(5, 45)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    return [parameter.grad for parameter in trained]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_plain_checkpointing(tiny_base, dropout):
    expected = gradients(tiny_base, checkpointing=True, dropout=dropout)
    found = gradients(tiny_base, checkpointing=True, is_offloaded=True, dropout=dropout)
    torch.testing.assert_close(found, expected)
    if not dropout:
        torch.testing.assert_close(found, gradients(tiny_base, checkpointing=False), rtol=1e-4, atol=1e-6)


def test_nothing_but_the_input_of_each_layer_leaves_the_device(tiny_base, monkeypatch):
    moved, to_host = [], offload._to_host
    monkeypatch.setattr(offload, "_to_host", lambda tensor: moved.append(tensor.shape) or to_host(tensor))
    gradients(tiny_base, checkpointing=True, is_offloaded=True)
    model = load_base(ModelTable(str(tiny_base)))
    assert moved == [(1, 40, model.config.hidden_size)] * model.config.num_hidden_layers


def test_without_checkpointing_there_is_nothing_to_offload(tiny_base):
    assert offload_checkpoints(load_base(ModelTable(str(tiny_base)))) == 0
