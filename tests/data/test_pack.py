"""Packing: rows that fit, samples that cannot see each other."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgetune.data.encode import NOT_TRAINED, Encoded
from edgetune.data.pack import attention_mask, collate, pack


def samples(lengths, seed=0):
    draw = random.Random(seed)
    rows = []
    for length in lengths:
        ids = [draw.randrange(6, 500) for _ in range(length)]
        rows.append(Encoded(ids, [NOT_TRAINED] * (length // 2) + ids[length // 2 :], "x"))
    return rows


def test_every_sample_is_in_one_row_and_no_row_is_too_long():
    rows = samples([random.Random(1).randrange(1, 60) for _ in range(300)])
    packed = pack(rows, max_seq_len=64)
    assert sorted(index for row in packed for index in row) == list(range(300))
    lengths = [sum(len(rows[index].input_ids) for index in row) for row in packed]
    assert max(lengths) <= 64
    assert sum(lengths) / (64 * len(packed)) > 0.97


def test_packing_is_the_same_every_time():
    rows = samples([5, 9, 5, 30, 12, 5])
    assert pack(rows, max_seq_len=32) == pack(rows, max_seq_len=32)


def test_the_first_token_of_a_sample_is_never_a_target():
    ids = [7, 8, 9]
    batch = collate([[Encoded(ids, ids, "x"), Encoded(ids, ids, "x")]], pad_id=1)
    assert batch.labels[0].tolist() == [-100, 8, 9, -100, 8, 9, -100, -100]
    assert batch.position_ids[0, :6].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.segment_ids[0].tolist() == [1, 1, 1, 2, 2, 2, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_packed_logits_and_loss_equal_those_of_each_sample_alone(tiny_base, dtype):
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    rows = samples([11, 5, 23, 8])
    batch = collate([[rows[0], rows[1]], [rows[2], rows[3]]], pad_id=1)
    with torch.no_grad():
        packed = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=attention_mask(batch.segment_ids, dtype),
        ).logits
        total = torch.nn.functional.cross_entropy(
            packed[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum", ignore_index=NOT_TRAINED
        )
        alone = torch.zeros(())
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits
            targets = torch.tensor(row.labels[1:])
            alone += torch.nn.functional.cross_entropy(
                logits[0, :-1], targets, reduction="sum", ignore_index=NOT_TRAINED
            )
    assert total.item() == pytest.approx(alone.item(), rel=1e-5)
