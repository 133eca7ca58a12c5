"""Greedy generation and losses of torch models: edgetune/evaluate/torch_model.py."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgetune.evaluate import torch_model
from edgetune.evaluate.rows import EvalRow, Limits
from edgetune.evaluate.torch_model import TorchAnswerer, greedy
from edgetune.model.inference import Place, token_bytes
from edgetune.recipe import ModelTable

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


ROWS = [EvalRow((), None, tuple(ids), tuple(ids), (-100, *ids[1:]), "x:1") for ids in PROMPTS]


def _runs_out(monkeypatch, name, most):
    """Let a function of torch_model run out of memory for more than `most` rows; the sizes that it was asked for."""
    real, asked = getattr(torch_model, name), []

    def limited(model, rows, **options):
        asked.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, rows, **options)

    monkeypatch.setattr(torch_model, name, limited)
    return asked


def test_where_memory_runs_out_half_the_rows_are_taken_and_answers_and_losses_stay(model, tokenizer, monkeypatch):
    whole = TorchAnswerer(model, tokenizer)
    texts, losses = whole.generate(ROWS, limits=_limits(6)), whole.losses(ROWS)
    answered, summed = _runs_out(monkeypatch, "greedy", 1), _runs_out(monkeypatch, "_batch_losses", 1)
    assert whole.generate(ROWS, limits=_limits(6)) == texts
    assert answered == [4, 2, 1, 1, 1, 1]
    assert [count for _, count in whole.losses(ROWS)] == [count for _, count in losses]
    assert [nats for nats, _ in whole.losses(ROWS)] == pytest.approx([nats for nats, _ in losses], rel=1e-5)
    assert summed == [3, 1, 1, 1] * 2  # one row has nothing to learn


def test_a_row_that_is_too_much_alone_and_other_errors_are_raised(model, tokenizer, monkeypatch):
    _runs_out(monkeypatch, "greedy", 0)
    with pytest.raises(torch.OutOfMemoryError):
        TorchAnswerer(model, tokenizer).generate(ROWS, limits=_limits(6))
    monkeypatch.setattr(torch_model, "greedy", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        TorchAnswerer(model, tokenizer).generate(ROWS, limits=_limits(6))


def test_as_many_rows_are_taken_at_once_as_have_room(model, tokenizer, monkeypatch):
    asked = _runs_out(monkeypatch, "greedy", math.inf)
    room = 2 * (max(map(len, PROMPTS)) + 6) * token_bytes(model.config, 4)
    place = Place(torch.device("cpu"), ModelTable("x"), room)
    TorchAnswerer(model, tokenizer, place=place).generate(ROWS, limits=_limits(6))
    assert asked == [2, 2]
    asked.clear()
    TorchAnswerer(model, tokenizer, place=dataclasses.replace(place, room_bytes=0)).generate(ROWS, limits=_limits(6))
    assert asked == [1, 1, 1, 1]


def test_logits_of_losses_exist_for_a_chunk_of_positions_at_a_time(model, tokenizer, monkeypatch):
    losses = TorchAnswerer(model, tokenizer).losses(ROWS)
    sizes, real = [], torch_model._nats
    monkeypatch.setattr(torch_model, "_nats", lambda logits, wanted: sizes.append(len(logits)) or real(logits, wanted))
    monkeypatch.setattr("edgetune.train.loss.chunk_tokens", lambda _: 4)
    monkeypatch.setattr("edgetune.train.loss.fill_up", lambda rows, *_: rows)
    assert TorchAnswerer(model, tokenizer).losses(ROWS) == [(pytest.approx(n, rel=1e-5), c) for n, c in losses]
    assert sizes == [4, 4, 2]  # 3 + 0 + 6 + 1 trained positions


def test_a_head_that_training_does_not_know_has_the_same_losses(model, tokenizer, monkeypatch):
    losses = TorchAnswerer(model, tokenizer).losses(ROWS)
    monkeypatch.setattr(torch_model, "has_known_head", lambda _: False)
    assert TorchAnswerer(model, tokenizer).losses(ROWS) == [(pytest.approx(n, rel=1e-5), c) for n, c in losses]
