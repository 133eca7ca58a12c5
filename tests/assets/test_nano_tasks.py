"""The synthetic tasks of edgetune:nano: repeatable, valid JSON, and every value copied from its prompt."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest

from edgetune.assets.nano.corpus import ASSISTANT, BOS, END, USER, Document, split_held_out
from edgetune.assets.nano.tasks import Pool, make_extraction, make_frame, make_pool, make_span, make_tasks

TEXT = (
    "One day the old farmer met Lucy Gray near the river. She said that Peter had gone to London with a basket. "
    "The farmer laughed and gave her seven yellow apples for the long road home. Then they walked to the village."
)


@pytest.fixture(scope="module")
def pool() -> Pool:
    spoken = Document("snips", "play the long song by lucy\nbook a table for two")
    return make_pool([*[Document("prose", TEXT)] * 6, spoken])


def test_the_same_seed_gives_the_same_tasks(pool: Pool) -> None:
    first, again, other = (list(itertools.islice(make_tasks(pool, seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_task_is_a_whole_chat(pool: Pool) -> None:
    for task in itertools.islice(make_tasks(pool, 3), 300):
        assert task.startswith(BOS)
        assert task.endswith(END)
        assert USER in task
        assert ASSISTANT in task


def test_extracted_values_stand_in_the_utterance(pool: Pool) -> None:
    rng = random.Random(0)
    for _ in range(300):
        turns = make_extraction(rng, pool, True)
        pairs = [(a, b) for (role, a), (_, b) in itertools.pairwise(turns) if role == USER]
        for utterance, answer in pairs:
            parsed = json.loads(answer)
            values = next((v for v in parsed.values() if isinstance(v, dict)), parsed)
            assert all(value in utterance for value in values.values())


def test_frame_fillers_stand_in_the_filled_sentence(pool: Pool) -> None:
    rng = random.Random(0)
    for _ in range(300):
        turns = [t for t in make_frame(rng, pool, False) if t[0] in (USER, ASSISTANT)]
        for (_, sentence), (_, answer) in zip(turns[::2], turns[1::2], strict=True):
            assert all(value in sentence for value in json.loads(answer).values())


def test_span_answers_are_json_with_one_key(pool: Pool) -> None:
    rng = random.Random(0)
    assert all(len(json.loads(make_span(rng, pool, True)[-1][1])) == 1 for _ in range(300))


def test_lower_case_tasks_have_lower_case_utterances(pool: Pool) -> None:
    rng = random.Random(0)
    utterances = [text for _ in range(100) for role, text in make_extraction(rng, pool, True) if role == USER]
    assert all(u == u.lower() for u in utterances)


def test_pool_names_are_capitalised_and_not_sentence_openers(pool: Pool) -> None:
    assert "Lucy Gray" in pool.names
    assert all(re.match(r"[A-Z][a-z]+", name) for name in pool.names)
    assert "Then" not in pool.names


def test_held_out_choice_depends_on_the_text_alone() -> None:
    documents = [Document("a", f"text {i}") for i in range(2000)]
    train, held_out = split_held_out(documents)
    train_again, held_out_again = split_held_out(documents[::-1])
    assert set(held_out) == set(held_out_again)
    assert 5 < len(held_out) < 50
    assert len(train) == len(train_again)
