"""train/head_loss.py: the loss fused with the head is the plain one, with its gradients, in little memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgetune.model import embedding
from edgetune.model.embedding import QuantizedHead, TokenVectors
from edgetune.train import head_loss
from edgetune.train.head_loss import LogitMap, can_fuse, chunk_tokens, fused_cross_entropy, head_weight

MAPS = {"plain": LogitMap(), "scaled": LogitMap(scale=8.0), "capped": LogitMap(cap=3.0), "both": LogitMap(2.0, 5.0)}


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operator makes."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.nbytes = max(self.nbytes, made.nbytes)
        return made


def make_inputs(positions=70, hidden=24, vocabulary=300):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(positions, hidden, generator=generator)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    return states, weight, torch.randint(vocabulary, (positions,), generator=generator)


def quantized(weight, kind, dtype=torch.float32):
    vectors = TokenVectors(*weight.shape, kind, dtype)
    vectors.put(0, weight)
    return vectors


def dequantized(vectors):
    return torch.cat([part for _, part in vectors.parts()])


def plain(states, weight, targets, mapped):
    logits = F.linear(states, weight).float() / mapped.scale
    if mapped.cap is not None:
        logits = torch.tanh(logits / mapped.cap) * mapped.cap
    return F.cross_entropy(logits, targets, reduction="sum")


def loss_and_gradient(function, *inputs):
    states = inputs[0].clone().requires_grad_()
    loss = function(states, *inputs[1:])
    (loss / 7).backward()
    return loss.detach(), states.grad


@pytest.mark.parametrize("mapped", MAPS.values(), ids=MAPS)
def test_loss_and_gradients_are_the_plain_ones_over_several_chunks(mapped, monkeypatch):
    monkeypatch.setattr(head_loss, "chunk_tokens", lambda _: 32)
    inputs = (*make_inputs(), mapped)
    expected, found = loss_and_gradient(plain, *inputs), loss_and_gradient(fused_cross_entropy, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("mapped", MAPS.values(), ids=MAPS)
def test_a_quantised_head_has_the_loss_and_gradients_of_its_dequantised_values(kind, mapped, monkeypatch):
    monkeypatch.setattr(embedding, "PART_TOKENS", 64)
    monkeypatch.setattr(head_loss, "MOST_CHUNK", 32)
    states, weight, targets = make_inputs()
    vectors = quantized(weight, kind)
    expected = loss_and_gradient(plain, states, dequantized(vectors), targets, mapped)
    found = loss_and_gradient(fused_cross_entropy, states, vectors, targets, mapped)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_quantised_head_in_bfloat16_stays_within_the_rounding_of_the_type(monkeypatch):
    monkeypatch.setattr(embedding, "PART_TOKENS", 64)
    states, weight, targets = make_inputs()
    vectors = quantized(weight, "int8", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradient(plain, states, dequantized(vectors), targets, LogitMap())
        found = loss_and_gradient(fused_cross_entropy, states, vectors, targets, LogitMap())
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_logits_of_any_size_lose_nothing_in_a_quantised_head(monkeypatch):
    monkeypatch.setattr(embedding, "PART_TOKENS", 64)
    states, weight, targets = make_inputs()
    vectors = quantized(weight * 100, "int8")
    expected = loss_and_gradient(plain, states, dequantized(vectors), targets, LogitMap())
    found = loss_and_gradient(fused_cross_entropy, states, vectors, targets, LogitMap())
    # float32 holds logits of 2,000 to 1e-4, which is then the share by which a probability differs
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-2)


def test_products_are_in_autocasts_type_and_the_loss_in_float32():
    states, weight, targets = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradient(plain, states, weight, targets, LogitMap())
        found = loss_and_gradient(fused_cross_entropy, states, weight, targets, LogitMap())
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_no_tensor_outgrows_a_chunk_whatever_the_vocabulary(monkeypatch):
    monkeypatch.setattr(head_loss, "CHUNK_LOGITS_BYTES", 2**20)
    states, weight, targets = make_inputs(positions=2000, hidden=16, vocabulary=8000)
    with Largest() as fused:
        loss_and_gradient(fused_cross_entropy, states, weight, targets, LogitMap())
    with Largest() as whole:
        loss_and_gradient(plain, states, weight, targets, LogitMap())
    assert whole.nbytes == 2000 * 8000 * 4
    assert fused.nbytes <= max(2**20, states.nbytes, weight.nbytes)


def test_of_a_quantised_head_neither_all_vectors_nor_all_logits_ever_exist(monkeypatch):
    monkeypatch.setattr(embedding, "PART_TOKENS", 500)
    states, weight, targets = make_inputs(positions=2000, hidden=64, vocabulary=8000)
    vectors = quantized(weight, "nf4")
    with Largest() as largest:
        loss_and_gradient(fused_cross_entropy, states, vectors, targets, LogitMap())
    assert largest.nbytes == 2048 * 500 * 4  # positions on the grid x a part of the vocabulary


def test_a_chunk_is_never_thin_and_never_too_wide():
    assert chunk_tokens(4096) == 4096
    assert chunk_tokens(131_072) == 128
    assert chunk_tokens(10**7) == head_loss.LEAST_CHUNK
    assert chunk_tokens(10) == head_loss.MOST_CHUNK


def test_heads_that_are_trained_or_adapted_are_not_fused():
    head = nn.Linear(4, 8, bias=False)
    assert not can_fuse(head)
    assert can_fuse(head.requires_grad_(False))
    assert not can_fuse(nn.Linear(4, 8).requires_grad_(False))
    assert not can_fuse(nn.Sequential(head))
    vectors = quantized(head.weight.detach(), "int8")
    assert can_fuse(QuantizedHead(vectors, None))
    assert not can_fuse(QuantizedHead(vectors, nn.Parameter(torch.zeros(8), requires_grad=False)))
    assert head_weight(QuantizedHead(vectors, None)) is vectors
    assert head_weight(head) is head.weight


def test_without_gradients_only_the_loss_is_made():
    states, weight, targets = make_inputs()
    assert not fused_cross_entropy(states, weight, targets).requires_grad
    assert float(fused_cross_entropy(states[:0], weight, targets[:0])) == 0.0
