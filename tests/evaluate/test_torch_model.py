"""Greedy generation and losses of torch models: edgetune/evaluate/torch_model.py."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgetune.evaluate.rows import EvalRow, Limits
from edgetune.evaluate.torch_model import TorchAnswerer, greedy

PROMPTS = [[5, 9, 200, 31], [77], [12, 300, 44, 8, 90, 101, 7], [400, 401]]


@pytest.fixture(scope="module")
def model(tiny_base):
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base)


def _limits(max_new_tokens, *eos_ids, context_length=512):
    return Limits(max_new_tokens, context_length, eos_ids)


def _alone(model, prompt, count):
    """Greedy ids without cache, batch or padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def _row(ids, trained):
    labels = tuple(token if place >= len(ids) - trained else -100 for place, token in enumerate(ids))
    return EvalRow(messages=(), reference=None, prompt_ids=(), input_ids=tuple(ids), labels=labels, place="x:1")


def test_a_padded_batch_answers_as_each_prompt_alone(model):
    answers = greedy(model, PROMPTS, limits=_limits(12))
    assert answers == [_alone(model, prompt, 12) for prompt in PROMPTS]


def test_rows_end_at_the_end_token_and_leave_the_batch_without_changing_others(model):
    full = [_alone(model, prompt, 12) for prompt in PROMPTS]
    ends = [full[0][3], full[1][1], full[2][6]]
    wanted = [ids[: next((place for place, token in enumerate(ids) if token in ends), 12)] for ids in full]
    assert greedy(model, PROMPTS, limits=_limits(12, *ends)) == wanted


def test_an_answer_ends_where_the_context_does(model):
    answers = greedy(model, PROMPTS, limits=_limits(12, context_length=10))
    assert answers == [_alone(model, prompt, 10 - len(prompt)) for prompt in PROMPTS]


def test_answers_come_back_in_the_order_of_the_rows(model, tokenizer):
    rows = [EvalRow((), None, tuple(prompt), tuple(prompt), (-100,) * len(prompt), "x:1") for prompt in PROMPTS]
    done = []
    answerer = TorchAnswerer(model, tokenizer, batch_size=3)
    texts = answerer.generate(rows, limits=_limits(6), on_done=done.append)
    assert texts == [tokenizer.decode(_alone(model, prompt, 6), skip_special_tokens=True) for prompt in PROMPTS]
    assert done == [3, 4]


def test_losses_of_a_batch_are_those_of_each_row_alone(model, tokenizer):
    rows = [_row([5, 9, 200, 31, 8, 7], 3), _row([77, 3], 1), _row([12, 300, 44, 8, 90, 101, 7, 6, 5], 9)]
    got = TorchAnswerer(model, tokenizer, batch_size=2).losses(rows)
    for row, (nats, count) in zip(rows, got, strict=True):
        with torch.no_grad():
            output = model(torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
        trained = sum(label != -100 for label in row.labels[1:])
        assert count == trained
        assert nats == pytest.approx(float(output.loss) * trained, rel=1e-5)  # float32 sums in another order


def test_a_row_without_trained_tokens_has_no_loss(model, tokenizer):
    assert TorchAnswerer(model, tokenizer).losses([_row([1, 2, 3], 0)]) == [(0.0, 0)]


def test_decode_speed_leaves_the_first_token_out(model, tokenizer):
    row = EvalRow((), None, tuple(PROMPTS[0]), (), (), "x:1")
    tokens, seconds = TorchAnswerer(model, tokenizer).decode_speed(row, limits=_limits(5))
    assert tokens == 4
    assert seconds > 0
