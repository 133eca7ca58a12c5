"""data/kinds.py: a row that a chat template refuses is found wherever it stands, and few rows are rendered for that."""

from __future__ import annotations

import pytest

from edgetune.data import kinds
from edgetune.data.kinds import require_each_kind
from edgetune.errors import DataError

TOOL = {"type": "function", "function": {"name": "lamp", "parameters": {}}}
ANSWERED = [{"role": "user", "content": "on"}, {"role": "assistant", "content": "done"}]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"tools": [TOOL]}, "tools: the chat template makes no use of this"),
        ({"messages": [ANSWERED[0], {**ANSWERED[1], "refusal": "no"}]}, "message 2: refusal: the chat template"),
        ({"messages": [ANSWERED[0], *ANSWERED]}, "the chat template refuses these messages: one by one"),
        ({"messages": [{"role": "robot", "content": "on"}]}, "unknown role 'robot'"),
    ],
)
def test_a_row_of_another_kind_is_found_wherever_it_stands(tokenizer, recipe, rows_file, monkeypatch, row, complaint):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('one by one') }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    table = [{"messages": [{"role": "user", "content": f"say {n}"}, ANSWERED[1]]} for n in range(40)]
    encoded = []
    one_by_one = kinds.encode_batch
    monkeypatch.setattr(kinds, "encode_batch", lambda rows, *a, **k: encoded.extend(rows) or one_by_one(rows, *a, **k))
    require_each_kind(recipe(rows_file(table)), "train", tokenizer)
    assert len(encoded) == 1
    with pytest.raises(DataError, match=f"rows.jsonl:36.*: {complaint}"):
        require_each_kind(recipe(rows_file([*table[:35], {"messages": ANSWERED, **row}, *table])), "train", tokenizer)
