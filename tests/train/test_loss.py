"""The loss: packed equals unpacked for every architecture that takes the fast way, and only what is trained counts."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from edgetune.train import loss as loss_module
from edgetune.train.batches import collate_rows
from edgetune.train.loss import evaluate_loss, loss_sum, use_segments, without_dropout
from edgetune.train.segments import SUPPORTED_TYPES

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
SPECIAL = {
    "mistral": {"sliding_window": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 2},
    "granite": {"logits_scaling": 5.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.2},
}


@dataclass(frozen=True)
class Sample:
    input_ids: list[int]
    labels: list[int]


def make_model(kind: str, *, dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **SPECIAL.get(kind, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").train()
    return model.requires_grad_(True)


def make_samples(lengths: list[int], seed: int = 0) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for length in lengths:
        ids = torch.randint(3, 96, (length,), generator=generator).tolist()
        prompt = length // 2
        samples.append(Sample(ids, [-100] * prompt + ids[prompt:]))
    return samples


def plain_loss(model, samples: list[Sample]) -> tuple[torch.Tensor, int]:
    """The definition: each sample alone through the model's own forward."""
    total, count = torch.zeros(()), 0
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.input_ids]), use_cache=False).logits[0, :-1].float()
        targets = torch.tensor(sample.labels[1:])
        total = total + F.cross_entropy(logits, targets, reduction="sum")
        count += int((targets != -100).sum())
    return total, count


ROWS = [[0, 3], [1, 2], [4]]
LENGTHS = [40, 7, 33, 3, 61]


@pytest.mark.parametrize("kind", sorted(SUPPORTED_TYPES))
def test_the_loss_and_gradients_of_packed_samples_are_those_of_each_sample_alone(kind):
    samples = make_samples(LENGTHS)
    model = make_model(kind)
    expected, count = plain_loss(model, samples)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert use_segments(model)
    found, found_count = loss_sum(model, collate_rows(samples, ROWS, pad_id=0))
    found.backward()
    assert found_count == count
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)  # float32, other order of sums
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("kind", ["gpt_neox", "cohere", "gemma2"])
def test_an_architecture_that_is_not_known_gets_the_same_loss_through_its_own_forward(kind):
    samples = make_samples(LENGTHS)
    model = make_model(kind)
    expected, count = plain_loss(model, samples)
    found, found_count = loss_sum(model, collate_rows(samples, ROWS, pad_id=0))
    assert found_count == count
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)


def test_an_unknown_architecture_is_left_as_it_is():
    model = make_model("gpt_neox")
    assert not use_segments(model)
    assert model.config._attn_implementation == "eager"


def test_only_trained_positions_reach_the_head():
    samples = make_samples(LENGTHS)
    model = make_model("llama")
    use_segments(model)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    _, count = loss_sum(model, collate_rows(samples, ROWS, pad_id=0))
    assert count <= sum(seen) <= 1.25 * count


def test_chunks_of_the_head_do_not_change_loss_or_gradients(monkeypatch):
    samples = make_samples([120, 90])
    results = []
    for chunk in (4096, 16):
        monkeypatch.setattr(loss_module, "chunk_tokens", lambda _, size=chunk: size)
        model = make_model("llama")
        use_segments(model)
        total, _ = loss_sum(model, collate_rows(samples, [[0], [1]], pad_id=0))
        total.backward()
        results.append((total.detach(), model.model.layers[0].mlp.up_proj.weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_a_long_sample_takes_the_kernel_for_long_samples_with_the_same_loss():
    samples = make_samples([300, 280])
    model = make_model("llama")
    expected, _ = plain_loss(model, samples)
    use_segments(model)
    found, _ = loss_sum(model, collate_rows(samples, [[0], [1]], pad_id=0))
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)


def test_evaluation_switches_dropout_off_and_changes_neither_mode_nor_random_numbers():
    samples = make_samples(LENGTHS)
    model = make_model("llama", attention_dropout=0.5)
    use_segments(model)
    before = torch.get_rng_state()
    first = evaluate_loss(model, samples, pad_id=0, max_seq_len=64)
    second = evaluate_loss(model, samples, pad_id=0, max_seq_len=64, batch_size=1)
    assert first[1] == second[1]
    assert first[0] == pytest.approx(second[0], rel=1e-5)  # other batches, other order of sums
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    with without_dropout(model):
        assert not any(m.training for m in model.modules() if hasattr(m, "attention_dropout"))


def test_a_batch_without_a_trained_token_has_loss_zero():
    sample = SimpleNamespace(input_ids=[5, 6, 7], labels=[-100] * 3)
    model = make_model("llama")
    use_segments(model)
    total, count = loss_sum(model, collate_rows([sample], [[0]], pad_id=0))
    assert (float(total.detach()), count) == (0.0, 0)
