"""The recipe's data as tokens on disk: counts, splits, cache."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import nullcontext

import pytest

from edgetune.data.prepare import examples, prepare, require_usable
from edgetune.data.read import rows
from edgetune.errors import DataError


def test_rows_too_long_or_with_nothing_to_learn_are_counted(tmp_path, tokenizer, recipe, rows_file):
    table = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(50)]
    table[3]["completion"] = "long " * 400
    table[4]["completion"] = ""
    prepared = prepare(recipe(rows_file(table)), tokenizer, cache=tmp_path / "cache")
    report = prepared.report
    assert report.dropped_too_long + report.dropped_untrainable == 2
    assert report.train_rows + report.eval_rows == 48
    assert report.format == "prompt-completion"
    assert report.longest > 256
    assert len(prepared.train) == report.train_rows
    assert report.trained_tokens == sum(row.trained_tokens for row in prepared.train)


def test_rows_left_out_are_told_in_words_also_those_of_eval(tmp_path, tokenizer, recipe):
    table = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row | {"completion": " "}) + "\n" for row in table[:2]))
    with (tmp_path / "eval.jsonl").open("a") as file:
        file.write(json.dumps(table[0]))
    report = prepare(recipe(tmp_path), tokenizer, cache=tmp_path / "cache").report
    assert (report.eval_rows, report.eval_dropped) == (1, 2)
    assert report.notes == ("2 eval rows left out, too long or with nothing to learn",)
    assert report.train_source == f"{tmp_path} (train: train.jsonl)"


def test_an_answer_of_one_token_is_kept_where_the_template_writes_no_end(tmp_path, tokenizer, recipe, rows_file):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}:{% endfor %}"
    table = [{"prompt": f"say {n}", "completion": "a"} for n in range(40)]
    report = prepare(recipe(rows_file(table)), tokenizer, cache=tmp_path / "cache").report
    assert report.dropped_untrainable == 0


def test_rows_that_are_all_alike_cannot_be_split(tmp_path, tokenizer, recipe, rows_file):
    path = rows_file([{"prompt": "a", "completion": "b"}] * 9)
    with pytest.raises(DataError, match=r"all rows are alike.*name rows in data\.eval"):
        prepare(recipe(path), tokenizer, cache=tmp_path / "cache")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(count, name):
        path = tmp_path / name
        row = json.dumps({"prompt": "x" * 200, "completion": "y" * 200})
        text = ",\n".join([row] * count) if name.endswith(".json") else "\n".join([row] * count)
        path.write_text(f"[{text}]" if name.endswith(".json") else text)
        del text
        tracemalloc.start()
        assert sum(1 for _ in rows(str(path))) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    for name in ("a.jsonl", "a.json"):
        assert peak(40000, name) < peak(10000, name) + 2**20


def test_long_rows_are_cut_or_refused_when_asked(tmp_path, tokenizer, recipe, rows_file):
    table = [{"prompt": "say", "completion": "long " * 400 + str(n)} for n in range(20)]
    path = rows_file(table)
    cut = prepare(recipe(path, "data.too_long=truncate"), tokenizer, cache=tmp_path / "cache")
    assert cut.report.truncated == cut.report.train_rows
    assert set(cut.train.lengths.tolist()) == {256}
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+: \d+ tokens, more than data.max_seq_len = 256"):
        prepare(recipe(path, "data.too_long=error"), tokenizer, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"no row can be trained on: .* longer than 256 tokens.*raise data.max_seq_len"):
        prepare(recipe(path), tokenizer, cache=tmp_path / "cache")


@pytest.mark.parametrize("too_long", ["error", "drop"])
def test_where_a_row_that_is_too_long_is_an_error_it_is_found_wherever_it_stands(
    tokenizer, recipe, rows_file, too_long
):
    table = [{"prompt": f"say {n}", "completion": "a" if n != 310 else "long " * 400} for n in range(320)]
    told = recipe(rows_file(table), f"data.too_long={too_long}")
    named = pytest.raises(DataError, match=r"rows.jsonl:311: .* tokens, more than")
    with named if too_long == "error" else nullcontext():
        require_usable(told, tokenizer)


def test_an_empty_file_is_an_error(tmp_path, tokenizer, recipe, rows_file):
    with pytest.raises(DataError, match="holds no rows"):
        prepare(recipe(rows_file([])), tokenizer, cache=tmp_path / "cache")


def test_a_single_row_needs_eval_rows_of_its_own(tmp_path, tokenizer, recipe, rows_file):
    path = rows_file([{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="one row cannot be split"):
        prepare(recipe(path), tokenizer, cache=tmp_path / "cache")


def test_two_rows_give_one_eval_row(tmp_path, tokenizer, recipe, rows_file):
    path = rows_file([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    report = prepare(recipe(path), tokenizer, cache=tmp_path / "cache").report
    assert (report.train_rows, report.eval_rows) == (1, 1)


def test_the_same_eval_rows_are_set_apart_whatever_the_order_and_none_is_trained_on(recipe, rows_file):
    table = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(200)]
    first = {example.messages for example in examples(recipe(rows_file(table)), "eval")}
    again = recipe(rows_file(table[::-1]), "train.seed=7")
    assert {example.messages for example in examples(again, "eval")} == first
    train = {example.messages for example in examples(again, "train")}
    assert not train & first
    assert len(train) + len(first) == 200
    assert 2 <= len(first) <= 25


def test_the_embedded_data_brings_its_own_splits(recipe):
    home = recipe("edgetune:home")
    counts = {which: sum(1 for _ in examples(home, which)) for which in ("train", "eval", "test")}
    assert counts == {"train": 4000, "eval": 400, "test": 500}


def test_tokens_come_from_the_cache_until_file_or_settings_change(tmp_path, tokenizer, recipe, rows_file):
    table = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(40)]
    path = rows_file(table)
    first = prepare(recipe(path), tokenizer, cache=tmp_path / "cache").train.fingerprint
    assert prepare(recipe(path, "lora.r=4"), tokenizer, cache=tmp_path / "cache").train.fingerprint == first
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert prepare(recipe(path, "data.loss_on=all"), tokenizer, cache=tmp_path / "cache").train.fingerprint != first
    rows_file([*table, {"prompt": "x", "completion": "y"}])
    assert prepare(recipe(path), tokenizer, cache=tmp_path / "cache").train.fingerprint != first


def test_max_train_rows_takes_the_first_rows(tmp_path, tokenizer, recipe, rows_file):
    table = [{"prompt": f"say {n}", "completion": f"word {n}"} for n in range(40)]
    prepared = prepare(recipe(rows_file(table), "data.max_train_rows=5"), tokenizer, cache=tmp_path / "cache")
    assert len(prepared.train) == 5


def test_snips_encodes_whole(data_dir, tokenizer, recipe, tmp_path):
    prepared = prepare(recipe(data_dir / "snips", "data.max_train_rows=200"), tokenizer, cache=tmp_path / "cache")
    assert prepared.report.train_rows == 200
    assert prepared.report.eval_rows == 700
    assert prepared.report.eval_source.endswith("snips (eval: dev/seq.in, dev/seq.out, dev/label)")
