"""Sources of rows: every kind of file, folders with splits, hub ids, and what is wrong with them by file and line."""

from __future__ import annotations

import csv
import gzip
import json

import datasets
import pytest

from edgetune.data import json_text
from edgetune.data.iob import frame
from edgetune.data.read import content_hashes, describe, rows, splits
from edgetune.errors import DataError

ROWS = [{"prompt": "wie heißt du", "completion": "ada"}, {"prompt": "a, b", "completion": "c\nd"}]


def write(path, kind):
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows_also_compressed(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", kind)
    packed = tmp_path / f"b.{kind}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [row.values for row in rows(str(path))] == ROWS
    assert [row.values for row in rows(str(packed))] == ROWS


def test_a_quotation_mark_is_an_ordinary_character_of_tsv(tmp_path):
    """An open quote, one that is closed lines later, and a word in quotes: each line is a row all the same."""
    texts = ['"call me', "win", 'he said ok"', '"yes" he said', '"', '"quoted"', "a 'b'"]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts))
    found = list(rows(str(tmp_path / "a.tsv")))
    assert [row.values["text"] for row in found] == texts
    assert [row.place.rpartition(":")[2] for row in found] == [str(number) for number in range(2, len(texts) + 2)]


def test_tsv_that_a_writer_of_csv_quoted_is_read_as_it_was_meant(tmp_path):
    texts = ['he said "no"', '"all of it"', "plain", '""']
    for name, quoting in (("minimal", csv.QUOTE_MINIMAL), ("all", csv.QUOTE_ALL)):
        with (tmp_path / f"{name}.tsv").open("w", newline="") as file:
            csv.writer(file, delimiter="\t", quoting=quoting).writerows([("text", "label"), *((t, "x") for t in texts)])
        assert [row.values["text"] for row in rows(str(tmp_path / f"{name}.tsv"))] == texts


@pytest.mark.parametrize("before", ['"row",ok', '"one\ntwo\nthree",ok'])
def test_a_cell_that_csv_cannot_hold_is_named_with_its_own_line(tmp_path, before):
    lines = f'text,label\n{before}\nplain,ok\n"he said \\"no\\", so",bad\n'
    (tmp_path / "a.csv").write_text(lines)
    line = lines.splitlines().index('"he said \\"no\\", so",bad') + 1
    with pytest.raises(DataError, match=rf"a\.csv:{line}: not valid CSV"):
        list(rows(str(tmp_path / "a.csv")))


CLASSES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["off", "on"])})
LABELLED = {"text": ["a", "b", "c"], "label": [1, 0, -1]}


@pytest.mark.parametrize("kind", ["parquet", "folder", "arrow", "file with a footer"])
def test_numbered_classes_have_the_names_that_datasets_wrote(tmp_path, kind):
    table = datasets.Dataset.from_dict(LABELLED, features=CLASSES)
    path = tmp_path / "saved"
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        table.to_parquet(path)
    elif kind == "file with a footer":
        import pyarrow

        path = tmp_path / "a.arrow"
        with pyarrow.ipc.new_file(path, table.data.table.schema) as file:
            file.write_table(table.data.table)
    else:
        table.save_to_disk(path)
        path = next(path.glob("*.arrow")) if kind == "arrow" else path
    assert [row.values["label"] for row in rows(str(path))] == ["on", "off", None]


def test_lists_of_numbered_classes_have_names_too(tmp_path):
    kind = datasets.Features({"labels": datasets.Sequence(datasets.ClassLabel(names=["off", "on"]))})
    datasets.Dataset.from_dict({"labels": [[1, 0], []]}, features=kind).to_parquet(tmp_path / "a.parquet")
    assert [row.values["labels"] for row in rows(str(tmp_path / "a.parquet"))] == [["on", "off"], []]


def test_keys_that_arrow_filled_with_null_are_no_arguments_of_a_call(tmp_path):
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "a", "arguments": {"x": 1}}}]},
        {"role": "assistant", "content": "b", "tool_calls": [{"function": {"name": "b", "arguments": {"y": 2}}}]},
    ]
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"messages": [turn], "tools": [{"name": "a"}]} for turn in turns]).to_parquet(path)
    found = [row.values["messages"][0] for row in rows(str(path))]
    assert [turn["tool_calls"][0]["function"]["arguments"] for turn in found] == [{"x": 1}, {"y": 2}]
    assert found[0]["content"] is None


def test_a_saved_dict_of_datasets_has_its_splits(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "saved")
    source = str(tmp_path / "saved")
    assert splits(source) == ("train", "test")
    assert [row.values for row in rows(source, split="train")] == ROWS
    assert [row.values for row in rows(source, split="test")] == ROWS[1:]


def test_a_damaged_arrow_file_is_one_line(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read as Arrow"):
        list(rows(str(tmp_path / "a.arrow")))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_json_that_comes_in_pieces_reads_the_same_with_the_lines_of_its_rows(tmp_path, monkeypatch, size):
    monkeypatch.setattr(json_text, "CHUNK_CHARACTERS", size)
    table = [{"a": '\u00e4\\n"' * n, "b": [n, True, None]} for n in range(9)]
    (tmp_path / "a.json").write_text(json.dumps(table, indent=1))
    found = list(rows(str(tmp_path / "a.json")))
    assert [row.values for row in found] == table
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert all(lines[int(row.place.rpartition(":")[2]) - 1] == " {" for row in found)


def test_a_json_file_may_hold_one_object_a_line(tmp_path):
    (tmp_path / "a.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert [row.values for row in rows(str(tmp_path / "a.json"))] == ROWS
    (tmp_path / "b.json").write_text(json.dumps({"messages": [{"role": "user"}]}))
    assert [list(row.values) for row in rows(str(tmp_path / "b.json"))] == [["messages"]]


def test_windows_line_ends_and_byte_order_marks_do_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ROWS))
    assert [row.values for row in rows(str(path))] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', r"a\.jsonl:3: a row must be a JSON object, not list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: is not UTF-8"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"a\.jsonl:1: not valid JSON: a number of"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000, r"a\.jsonl:1: not valid JSON: nested too deeply"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', r"a\.json:2: not valid JSON: expecting ','"),
        ("a.json", b'[{"a": 1},\n{"a": "x', r"a\.json:2: not valid JSON: Unterminated string"),
        ("a.json", b'[{"a": 1}]\n[', r"a\.json:2: not valid JSON: more text after the list"),
        ("a.json", b"[1]", r"a\.json:1: a row must be a JSON object"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv:1: column 'a' occurs twice"),
        ("a.json", b'[\n{"a": 1},\n]', r"a\.json:\d+: not valid JSON|a\.json: not valid JSON"),
        ("a.csv", b"a,b\n1\n", r"a\.csv:2: has another number of columns"),
        ("a.csv", b'a,b\n"1,2\n', r"a\.csv:\d: not valid CSV"),
        ("a.parquet", b"PAR", "cannot be read as parquet"),
        ("a.jsonl.gz", b"no", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:12] + b"\xff" * 40, "cannot be read"),
        ("a.xml", b"<a/>", "unknown kind of file"),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        list(rows(str(tmp_path / name)))


def test_a_folder_has_splits_by_its_file_names(tmp_path):
    for name in ("train-00000.jsonl", "dev.jsonl", "test.jsonl"):
        write(tmp_path / name, "jsonl")
    assert splits(str(tmp_path)) == ("train", "eval", "test")
    assert len(list(rows(str(tmp_path), split="eval"))) == len(ROWS)


def test_a_folder_without_split_names_is_all_train(tmp_path):
    write(tmp_path / "a.jsonl", "jsonl")
    write(tmp_path / "b.csv", "csv")
    assert splits(str(tmp_path)) == ("train",)
    assert len(list(rows(str(tmp_path)))) == 2 * len(ROWS)


def test_a_file_named_exactly_like_a_split_hides_those_that_only_hold_the_word(tmp_path):
    for name in ("train.jsonl", "test.jsonl", "test_socratic.jsonl", "solutions.jsonl"):
        write(tmp_path / name, "jsonl")
    assert len(list(rows(str(tmp_path), split="test"))) == len(ROWS)
    assert describe(str(tmp_path), "test") == f"{tmp_path} (test: test.jsonl)"
    with pytest.raises(DataError, match="has no eval split; found: train, test"):
        list(rows(str(tmp_path), split="eval"))


def test_files_with_a_split_among_the_words_of_their_name_are_told_apart(tmp_path):
    for name in ("my-train.jsonl", "my-test.jsonl"):
        write(tmp_path / name, "jsonl")
    assert splits(str(tmp_path)) == ("train", "test")
    assert len(list(rows(str(tmp_path)))) == len(ROWS)


def test_a_folder_in_a_folder_may_name_the_split(tmp_path):
    for name in ("train", "validation"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "part-1.parquet", "parquet")
    assert splits(str(tmp_path)) == ("train", "eval")


def test_the_files_of_runs_in_a_folder_are_not_its_data(tmp_path):
    """A recipe whose data is the current folder puts its run there, with a train.json among its results."""
    write(tmp_path / "train.jsonl", "jsonl")
    run = tmp_path / "runs" / "x"
    (run / "results").mkdir(parents=True)
    for name in ("recipe.toml", "run.json", "results/train.json"):
        (run / name).write_text("{}")
    assert len(list(rows(str(tmp_path), split="train"))) == len(ROWS)
    (run / "run.json").unlink()
    assert len(content_hashes(str(tmp_path), "train")) == 2, "a folder that is no run's"


def test_an_environment_variable_in_a_path_is_expanded_and_an_unset_one_named(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", "jsonl")
    monkeypatch.setenv("MY_ROWS", str(tmp_path))
    assert len(list(rows("$MY_ROWS/a.jsonl"))) == 2
    monkeypatch.delenv("MY_ROWS")
    with pytest.raises(DataError, match="MY_ROWS is not set"):
        list(rows("$MY_ROWS/a.jsonl"))


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match="no such file or folder"):
        list(rows("nothing.jsonl"))
    with pytest.raises(DataError, match=r"folder/nothing\.jsonl: no such file or folder; give a data file"):
        list(rows("folder/nothing.jsonl"))


def test_columns_are_renamed_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "1", "answer": "2"}\n')
    names = {"prompt": "question", "completion": "answer"}
    assert next(rows(str(path), columns=names)).values == {"prompt": "1", "completion": "2"}
    with pytest.raises(DataError, match=r"a\.jsonl:1: no column 'reply'; columns found: question, answer"):
        list(rows(str(path), columns={"completion": "reply"}))


def test_a_hub_id_goes_through_datasets(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train", "validation"])  # noqa: ARG005
    assert splits("org/name:small") == ("train", "eval")
    assert [row.values for row in rows("org/name:small", split="eval")] == ROWS
    assert asked == [("org/name", "small", "validation")]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    with pytest.raises(DataError, match=r"not to be had from the hub: no route; check the name"):
        list(rows("org/name"))


def test_iob_tags_become_a_frame_with_slots_in_order_and_lists_for_repeats():
    words = ["add", "a", "b", "to", "x", "and", "c"]
    tags = ["O", "B-song", "I-song", "O", "B-list", "O", "B-song"]
    assert frame(words, tags, "Add") == {"intent": "Add", "slots": {"song": ["a b", "c"], "list": "x"}}


def test_snips_reads_as_prompts_and_frames(data_dir):
    source = str(data_dir / "snips")
    assert splits(source) == ("train", "eval", "test")
    first = next(rows(source, split="train"))
    assert first.values["prompt"] == "listen to westbam alumb allergic on google music"
    assert json.loads(first.values["completion"]) == {
        "intent": "PlayMusic",
        "slots": {"artist": "westbam", "album": "allergic", "service": "google music"},
    }
    assert sum(1 for _ in rows(source, split="train")) == 13084


def iob_folder(folder, words, tags, labels):
    folder.mkdir(exist_ok=True)
    for name, content in (("seq.in", words), ("seq.out", tags), ("label", labels)):
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.mark.parametrize(
    ("words", "tags", "labels", "complaint"),
    [
        (b"a b\nc\n", b"O O\nO O\n", b"X\nX\n", r"seq\.in:2: 1 words but 2 tags"),
        (b"a\nb\n", b"O\nO\n", b"X\n", r"seq\.in:2: seq\.in, seq\.out, label have different numbers of lines"),
        (b"a\nb\n", b"O\nsong\n", b"X\nX\n", r"seq\.in:2: 'song' is no IOB tag"),
        (b"a\nb\n", b"O\nO\n", b"X\n\xff\n", r"label:2: is not UTF-8"),
    ],
)
def test_an_iob_folder_that_cannot_be_read_is_named_with_the_line(tmp_path, words, tags, labels, complaint):
    with pytest.raises(DataError, match=complaint):
        list(rows(iob_folder(tmp_path / "train", words, tags, labels)))


def test_an_iob_folder_may_be_named_itself_and_end_in_blank_lines(tmp_path):
    source = iob_folder(tmp_path / "test", b"a b \n\n", b"O B-x \n\n", b"X\n\n")
    assert [row.values["completion"] for row in rows(source)] == ['{"intent": "X", "slots": {"x": "b"}}']
    assert splits(str(tmp_path)) == ("test",)
