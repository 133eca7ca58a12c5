"""Logits: those of torch, alone, in a batch and in chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.errors import PromptError
from edgetune.runtime import logits as module
from edgetune.runtime.logits import Logits

IDS = np.random.default_rng(0).integers(6, 500, 90).tolist()


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Logits:
    return Logits(tiny_bundle)


def test_fp32_logits_equal_torchs(graph: Logits, tiny_base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tiny_base)(torch.tensor([IDS])).logits[0].numpy()
    got = graph.logits(IDS)
    assert got.dtype == np.float32
    # Two float32 orders of summation over 64 to 128 terms of about one.
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_batch_of_unequal_lengths_equals_each_alone(graph: Logits) -> None:
    batch = [IDS, IDS[:37], IDS[5:6]]
    for got, ids in zip(graph.batch_logits(batch), batch, strict=True):
        np.testing.assert_allclose(got, graph.logits(ids), atol=1e-5)
    assert graph.batch_logits([]) == []


def test_losses_in_chunks_equal_losses_from_the_logits(graph: Logits, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = graph.logits(IDS).astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -log_probabilities[np.arange(len(IDS) - 1), IDS[1:]]
    np.testing.assert_allclose(graph.token_losses(IDS), wanted, atol=1e-5)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 512 * 20)
    np.testing.assert_allclose(graph.token_losses(IDS), wanted, atol=1e-5)


def test_one_token_has_no_loss(graph: Logits) -> None:
    assert graph.token_losses([7]).shape == (0,)


@pytest.mark.parametrize("ids", [[], [7] * 513])
def test_no_tokens_and_too_many_are_refused(graph: Logits, ids: list[int]) -> None:
    for call in (graph.logits, graph.token_losses):
        with pytest.raises(PromptError, match="the context of tiny holds 1 to 512"):
            call(ids)


def test_logits_of_the_runtime_loop_are_the_same(graph: Logits, tiny_bundle: Path) -> None:
    from edgetune.runtime.decoder import Decoder

    answer = Decoder(tiny_bundle).generate(IDS, max_new_tokens=1).token_ids[0]
    assert int(graph.logits(IDS)[-1].argmax()) == answer
