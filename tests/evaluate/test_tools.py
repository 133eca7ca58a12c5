"""Rows with tools: what is asked holds them, and the reference is what a model that learned the calls writes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from edgetune.errors import CheckError
from edgetune.evaluate.bundle import BundleAnswerer
from edgetune.evaluate.rows import make_eval_set, read_eval_set, write_rows
from edgetune.recipe import parse_recipe
from edgetune.runtime.bundle import open_bundle, write_manifest

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = {"name": "lamp", "arguments": {"room": "bath"}}
ROW = {
    "messages": [
        {"role": "user", "content": "lamp on"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
    ],
    "tools": [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}],
}


@pytest.fixture
def eval_set(tiny_base: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    text = f'[model]\nbase = "{tiny_base}"\n[data]\ntrain = "a"\ntest = "{tmp_path / "rows.jsonl"}"\n'
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = TEMPLATE
    ends = (tokenizer.eos_token_id,)
    return make_eval_set(parse_recipe(text, source="r.toml"), tokenizer, eos_ids=ends, context_length=512)


def test_the_reference_is_the_call_as_the_template_writes_it(eval_set, tiny_base: Path) -> None:
    (row,) = eval_set.rows
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    asked = tokenizer.apply_chat_template(
        ROW["messages"][:1], tools=ROW["tools"], chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(row.prompt_ids) == asked
    assert row.reference == f"<call>{json.dumps(CALL)}</call>"
    assert tokenizer.decode([row.input_ids[place] for place in row.trained]) == f"{row.reference}<|end|>"


def test_tools_are_kept_in_the_file_and_in_the_bundles_prompts(eval_set, tiny_bundle: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", eval_set)
    kept = read_eval_set(tmp_path / "rows.json")
    assert kept.rows[0].tools == tuple(ROW["tools"])
    bundle = open_bundle(tiny_bundle)
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    chat = dataclasses.replace(bundle.chat_format, template=TEMPLATE)
    write_manifest(dataclasses.replace(bundle, path=folder, chat=chat))
    answerer = BundleAnswerer(folder)
    limits = dataclasses.replace(kept.limits, max_new_tokens=2)
    assert len(answerer.generate(kept.rows, limits=limits)) == 1
    without = dataclasses.replace(kept.rows[0], tools=())
    with pytest.raises(CheckError, match="differs from the training's"):
        answerer.generate([without], limits=limits)
